"""Registration of a model: one version a model digest, and the alias champion on the best."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.registry import load
from vaeline.registry.champion import GateEvaluator, registry_lock, run_gate
from vaeline.registry.gate import Evidence
from vaeline.registry.versions import (
    CHAMPION,
    DATA_TAG,
    DIGEST_TAG,
    MANIFEST_TAG,
    find_by_digest,
    find_champion,
    find_versions,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

TEST_METRICS = ("elbo", "nll", "psnr")  # shown as tags of a version
UNFINISHED_TAG = "vaeline.unfinished"  # on a version whose package is not sealed yet: the model's digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewModel:
    """Trained model to register."""

    name: str  # of the registered model
    folder: Path  # model.safetensors and config.json
    loaded: "LoadedModel"
    example: np.ndarray  # a few images, uint8 [N, C, H, W]
    evidence: Evidence
    run_id: str
    reference: np.ndarray | None = None  # ELBOs of test images, nats, for drift tests


@dataclass(frozen=True)
class Registration:
    """Outcome: content only, the same for the same model and champion."""

    digest: str
    name: str
    decision: str  # promoted | rejected | unchanged
    reasons: tuple[str, ...]
    gate: Mapping[str, float]  # the numbers behind them


def register(client: "MlflowClient", workspace: Workspace, model: NewModel, evaluator: GateEvaluator) -> Registration:
    """Register a model once, however often and from wherever this is called, and decide on the champion.

    The alias moves last: after the upload, and after the model was loaded back. The decision is kept as tags of the
    version; for a model that already is the champion it is read from there, so that a repetition has the same result.
    """
    with registry_lock(client, workspace):
        version = find_by_digest(client, model.name, model.evidence.digest) or publish(client, model)
        for key, value in evidence_tags(model.evidence).items():  # it may have been evaluated again
            client.set_model_version_tag(model.name, version.version, key, value)
        champion = find_champion(client, model.name)
        if champion is not None and int(champion.version) == int(version.version):
            log.info("%s version %s is the champion already", model.name, version.version)
            return _recorded(model, version)
        decision = run_gate(client, version, evaluator.candidate(model.loaded, model.evidence), evaluator)
    result = "promoted" if decision.promote else "rejected"
    return Registration(model.evidence.digest, model.name, result, decision.reasons, decision.numbers)


def evidence_tags(evidence: Evidence) -> dict[str, str]:
    """Evidence as a version's tags."""
    measured = {name: evidence.metrics[f"test/{name}"] for name in TEST_METRICS if f"test/{name}" in evidence.metrics}
    return {
        DIGEST_TAG: evidence.digest,
        DATA_TAG: evidence.data_digest,
        "vaeline.likelihood": evidence.likelihood,
        "vaeline.objective": evidence.objective,
        "vaeline.validation_elbo": repr(evidence.validation_elbo),
        "vaeline.active_units": str(evidence.active_units),
        **{f"vaeline.test_{name}": repr(value) for name, value in measured.items()},
    }


def publish(client: "MlflowClient", model: NewModel) -> "ModelVersion":
    """Upload a model, make its version, seal the package under the number received, and load it back.

    The version has no model digest, by which it is found, until all of this succeeded; a version that a killed
    process left unfinished is deleted by the next one. Where another machine was faster, its version stays.
    """
    from mlflow.exceptions import MlflowException

    name, digest, description = model.name, model.evidence.digest, _usage(model.name)
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for old in find_versions(client, name):
        if old.tags.get(UNFINISHED_TAG) == digest:
            client.delete_model_version(name, old.version)
    version = _upload(client, model)
    first = find_by_digest(client, name, digest)
    if first is None or int(first.version) == int(version.version):
        return client.get_model_version(name, version.version)
    client.delete_model_version(name, version.version)
    return first


def _upload(client: "MlflowClient", model: NewModel) -> "ModelVersion":
    """Store the package under the model's run and make a finished version of it."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models.model import Model

    from vaeline.serving.mlflow_package import write_package
    from vaeline.serving.package import MANIFEST, SIGNATURE, seal

    run, digest = client.get_run(model.run_id), model.evidence.digest
    stored = client.create_logged_model(
        run.info.experiment_id, model.name, model.run_id, {DIGEST_TAG: digest}, run.data.params, "vae"
    )
    version, uri = None, f"models:/{stored.model_id}"
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder, seals = Path(temporary) / "model", Path(temporary) / "seal"
            content = Model(
                artifact_path=stored.artifact_location,
                model_uuid=stored.model_id,
                model_id=stored.model_id,
                run_id=model.run_id,
            )
            write_package(folder, model.folder, model.loaded, model.example, content, model.reference)
            client.log_model_artifacts(stored.model_id, str(folder))
            version = client.create_model_version(
                *(model.name, uri, model.run_id, {UNFINISHED_TAG: digest}),
                description=_usage(model.name),
                model_id=stored.model_id,
            )
            manifest = seal(folder, model.name, int(version.version), model.loaded)
            seals.mkdir()
            for file in (MANIFEST, SIGNATURE):
                if (folder / file).exists():
                    shutil.copyfile(folder / file, seals / file)
            client.log_model_artifacts(stored.model_id, str(seals))
        verify_package(uri, model.loaded, model.example)
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("vaeline.")}
        tags |= {MANIFEST_TAG: manifest, **evidence_tags(model.evidence)}
        for key in sorted(tags.keys() - {"vaeline.outbox", DIGEST_TAG}):
            client.set_model_version_tag(model.name, version.version, key, tags[key])
        client.finalize_logged_model(stored.model_id, LoggedModelStatus.READY)
        client.log_outputs(model.run_id, [LoggedModelOutput(stored.model_id, step=0)])
        client.set_model_version_tag(model.name, version.version, DIGEST_TAG, digest)
        client.delete_model_version_tag(model.name, version.version, UNFINISHED_TAG)
    except BaseException:
        client.finalize_logged_model(stored.model_id, LoggedModelStatus.FAILED)
        if version is not None:
            client.delete_model_version(model.name, version.version)
        raise
    return version


def _recorded(model: NewModel, version: "ModelVersion") -> Registration:
    """Decision that made this version champion; `unchanged` where the alias was set by hand."""
    digest, name = model.evidence.digest, model.name
    if version.tags.get("vaeline.decision") != "promoted":
        return Registration(digest, name, "unchanged", ("it is the champion already",), {})
    reasons, numbers = (json.loads(version.tags.get(f"vaeline.{key}", "[]")) for key in ("reasons", "gate"))
    return Registration(digest, name, "promoted", tuple(reasons), dict(numbers))


def _usage(name: str) -> str:
    uri = f"models:/{name}@{CHAMPION}"
    loading = f'mlflow.pyfunc.load_model("{uri}")'
    return (
        f'`vaeline.load("{uri}")`, which checks every file first, or, without vaeline:\n\n'
        f'`{loading}.predict(pixels, params={{"method": "reconstruct"}})`\n\n'
        "Methods: `reconstruct`, `encode`, `score` (ELBO in nats per image) take pixels, whole numbers 0-255, "
        "[N, C, H, W]; `decode` takes latents [N, Z]; `sample` takes anything, and `n` and `seed` in `params`."
    )


def verify_package(uri: str, loaded: "LoadedModel", example: np.ndarray) -> None:
    """Load an uploaded model back, as `vaeline.load` does it and by MLflow.

    Raises UserError where other files came back, or other numbers come out.
    """
    import mlflow.pyfunc

    from vaeline.serving.inference import TrainedModel
    from vaeline.serving.pyfunc import PARAMS

    back, own = load.load(uri), TrainedModel(loaded)
    if back.digest != own.digest:
        raise UserError(f"{uri}: the model that came back has digest {back.digest}, {own.digest} was sent")
    served = mlflow.pyfunc.load_model(uri)
    if not np.array_equal(served.predict(example, params=PARAMS), own.reconstruct(example), equal_nan=True):
        raise UserError(f"{uri}: the model that came back reconstructs other images than the one that was sent")
