"""Stored model of a registered version: read for scoring, and tried in a fresh process."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.io.digests import model_digest
from vaeline.registry import load
from vaeline.registry.versions import DIGEST_TAG, MANIFEST_TAG
from vaeline.serving.model_files import CONFIG, WEIGHTS, LoadedModel
from vaeline.serving.package import load_plain
from vaeline.tracking.connection import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SMOKE_SECONDS = 300  # starting takes some ten on a slow machine


def load_version(client: "MlflowClient", version: "ModelVersion") -> LoadedModel:
    """Model of a version, on the CPU; one registered by hand, without a manifest, only where no key must sign it.

    Raises UserError where it is damaged, gone or not the registered one, and MLflow's own errors where the store is
    away.
    """
    from mlflow.exceptions import MlflowException

    try:
        if MANIFEST_TAG in version.tags:
            return load.load(f"models:/{version.name}/{version.version}").loaded
        with tempfile.TemporaryDirectory() as folder:
            return load_plain(download_model(version, Path(folder)))
    except (MlflowException, OSError, UserError) as error:
        client.get_model_version(version.name, version.version)
        raise UserError(_plain(str(error))) from None


def download_model(version: "ModelVersion", folder: Path) -> Path:
    """model.safetensors and config.json of a version, copied under `folder`; returns the folder that holds them.

    Raises UserError where there are none, or not those that were registered.
    """
    import mlflow

    uri = f"models:/{version.name}/{version.version}"
    package = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    found = [path.parent for path in package.rglob(WEIGHTS)]
    if len(found) != 1 or not (found[0] / CONFIG).is_file():
        raise UserError(f"{uri}: holds no {WEIGHTS} with its {CONFIG}: not registered by vaeline")
    digest = model_digest(found[0])
    if digest != (registered := version.tags.get(DIGEST_TAG, digest)):
        raise UserError(f"{uri}: its files have the digest {digest[:12]}, registered was {registered[:12]}: changed")
    return found[0]


def smoke_test(client: "MlflowClient", version: "ModelVersion", seconds: int = SMOKE_SECONDS) -> str | None:
    """Check the version's files, then load it in a process of its own and predict; returns the error in one line.

    The process imports the package's own code: it does not see this one's modules, nor its PYTHONPATH.
    """
    try:
        load_version(client, version)
    except UserError as error:
        return str(error)
    program = Path(__file__).with_name("smoke.py")
    command = [sys.executable, "-P", str(program), f"models:/{version.name}/{version.version}", str(seconds)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": client.tracking_uri, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as elsewhere:
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
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return _plain(lines[-1]) if lines else f"it ended with exit code {done.returncode} and no message"


def _plain(text: str) -> str:
    """One line without credentials and without folders, which differ from place to place."""
    line = " ".join(redact(text).split())[:300]
    return re.sub(r"(?:file:/+)?/(?:[^\s/:'\"]+/)+", "", line)
