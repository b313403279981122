"""A registered version's stored model: read for scoring, and tried in a fresh process."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import redact, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

DIGEST = "vaeline.model_digest"
SMOKE_SECONDS = 300  # starting takes some ten on a slow machine


def load_version(client: "MlflowClient", version: "ModelVersion") -> "LoadedModel":
    """Read a version's weights, on the CPU. Raises UserError where they are damaged, gone or not those registered.

    A store that is away raises what MLflow raises: it says nothing about the model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from vaeline.registry import load
    from vaeline.serving.model_files import WEIGHTS, load_model

    uri = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if load.MANIFEST_TAG in version.tags:
                return load.load(uri).loaded
            mlflow.artifacts.download_artifacts(uri, dst_path=folder)  # registered by hand: weights and config alone
            weights = next(Path(folder).rglob(WEIGHTS), None)
            if weights is None:
                raise UserError(f"its artifact holds no {WEIGHTS}")
            loaded = load_model(weights.parent)
        except (MlflowException, OSError, UserError) as error:
            client.get_model_version(version.name, version.version)
            raise UserError(_plain(str(error))) from None
    wanted = version.tags.get(DIGEST, loaded.digest)
    if loaded.digest != wanted:
        raise UserError(f"its files have the digest {loaded.digest[:12]}, registered was {wanted[:12]}")
    return loaded


def smoke_test(version: "ModelVersion", seconds: int = SMOKE_SECONDS) -> str | None:
    """Load the version in a process of its own and predict; returns what went wrong, in one line, or None."""
    program = Path(__file__).with_name("smoke.py")
    command = [sys.executable, "-P", str(program), f"models:/{version.name}/{version.version}", str(seconds)]
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking_uri(current_workspace()),
            "CUDA_VISIBLE_DEVICES": "",
        }
        environment.pop("PYTHONPATH", None)
        try:
            done = subprocess.run(
                command,
                cwd=elsewhere,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {seconds} s"
    if done.returncode == 0:
        return None
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return _plain(said[-1]) if said else f"it ended with exit code {done.returncode} and without a word"


def _plain(text: str) -> str:
    """One line without credentials and without folders, which differ from place to place."""
    line = " ".join(redact(text).split())[:300]
    return re.sub(r"(?:file:/+)?/(?:[^\s/:'\"]+/)+", "", line)
