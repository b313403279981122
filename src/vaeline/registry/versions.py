"""The registry: one version a model digest, and the alias champion on the best."""

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaeline.errors import UserError
from vaeline.registry import load
from vaeline.registry.champion import CHAMPION, Trial, contest, read_standing, registry_lock
from vaeline.registry.gate import Evidence
from vaeline.registry.stored import DIGEST

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

TEST_METRICS = ("elbo", "nll", "psnr")  # that a version shows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model that asks to be registered."""

    name: str  # of the registered model
    folder: Path  # model.safetensors and config.json
    loaded: "LoadedModel"
    example: np.ndarray  # a few images, uint8 [N, C, H, W]
    evidence: Evidence
    run_id: str
    reference: np.ndarray | None = None  # ELBOs of test images, nats: by them a consumer sees drift


@dataclass(frozen=True)
class Registration:
    """What came of it: content only, the same for the same model and champion."""

    digest: str
    name: str
    decision: str  # promoted | rejected | unchanged
    reasons: tuple[str, ...]
    gate: Mapping[str, float]  # the numbers behind them


def register(client: "MlflowClient", candidate: Candidate, trial: Trial) -> Registration:
    """Register a model once, however often and from wherever this is called, and decide on the champion.

    The alias moves last: after the upload, and after the model was loaded back. What was decided is written on the
    version as tags; for a model that already is the champion it is read from there, so that a repetition says the same.
    """
    with registry_lock(client):
        version = find_version(client, candidate.name, candidate.evidence.digest) or publish(client, candidate)
        champion = read_standing(client, candidate.name).champion
        if champion is not None and int(champion.version) == int(version.version):
            log.info("%s version %s is the champion already", candidate.name, version.version)
            return _recorded(candidate, version)
        for key, value in evidence_tags(candidate.evidence).items():  # it may have been evaluated anew
            client.set_model_version_tag(candidate.name, version.version, key, value)
        decision = contest(client, version, trial.contender(candidate.loaded, candidate.evidence), trial)
    word = "promoted" if decision.promote else "rejected"
    return Registration(candidate.evidence.digest, candidate.name, word, decision.reasons, decision.numbers)


def find_version(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """The first version of this model digest."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST}` = '{digest}'")
    return min(found, key=lambda version: int(version.version), default=None)


def evidence_tags(evidence: Evidence) -> dict[str, str]:
    """What a version keeps of the evidence, for comparison with later models."""
    measured = {name: evidence.metrics[f"test/{name}"] for name in TEST_METRICS if f"test/{name}" in evidence.metrics}
    return {
        DIGEST: evidence.digest,
        "vaeline.data_digest": evidence.data_digest,
        "vaeline.likelihood": evidence.likelihood,
        "vaeline.objective": evidence.objective,
        "vaeline.validation_elbo": repr(evidence.validation_elbo),
        "vaeline.active_units": str(evidence.active_units),
        **{f"vaeline.test_{name}": repr(value) for name, value in measured.items()},
    }


def publish(client: "MlflowClient", candidate: Candidate) -> "ModelVersion":
    """Upload, load back, and only then make the version; where another machine was faster, its version stays."""
    from mlflow.exceptions import MlflowException

    from vaeline.registry.load import MANIFEST_TAG
    from vaeline.serving.mlflow_package import renumber_package

    serial = _next_number(client, candidate.name)
    uri, model_id, manifest = _upload(client, candidate, serial)
    name, run = candidate.name, client.get_run(candidate.run_id)
    try:
        client.create_registered_model(name, description=_how_to_use(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("vaeline.") and key != "vaeline.spool"}
    tags |= evidence_tags(candidate.evidence) | {MANIFEST_TAG: manifest}
    made = client.create_model_version(
        name, uri, candidate.run_id, tags, description=_how_to_use(name), model_id=model_id
    )
    while int(made.version) != serial:  # deleted versions keep their numbers, and other machines take some
        client.delete_model_version(name, made.version)
        serial = int(made.version) + 1
        tags[MANIFEST_TAG] = manifest = renumber_package(client, model_id, manifest, serial)
        made = client.create_model_version(
            name, uri, candidate.run_id, tags, description=_how_to_use(name), model_id=model_id
        )
    first = find_version(client, name, candidate.evidence.digest)
    if first is None or int(first.version) == int(made.version):
        return made
    client.delete_model_version(name, made.version)
    return first


def _next_number(client: "MlflowClient", name: str) -> int:
    """The number that the next version will most likely get; its package's signed manifest names it."""
    return 1 + max((int(version.version) for version in client.search_model_versions(f"name = '{name}'")), default=0)


def _upload(client: "MlflowClient", candidate: Candidate, serial: int) -> tuple[str, str, str]:
    """Store the MLflow model under its run; returns its address, its id and its manifest's SHA-256."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models.model import Model

    from vaeline.serving.mlflow_package import describe, write_package

    run = client.get_run(candidate.run_id)
    tags = {DIGEST: candidate.evidence.digest}
    stored = client.create_logged_model(
        run.info.experiment_id, candidate.name, candidate.run_id, tags, run.data.params, "vae"
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            model = Model(
                artifact_path=stored.artifact_location,
                model_uuid=stored.model_id,
                model_id=stored.model_id,
                run_id=candidate.run_id,
                metadata=describe(candidate.loaded),
            )
            folder = Path(temporary) / "model"
            manifest = write_package(
                folder,
                candidate.folder,
                candidate.loaded,
                candidate.example,
                model,
                candidate.name,
                serial,
                candidate.reference,
            )
            client.log_model_artifacts(stored.model_id, str(folder))
        uri = f"models:/{stored.model_id}"
        verify_package(uri, candidate.loaded, candidate.example)
    except BaseException:
        client.finalize_logged_model(stored.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(stored.model_id, LoggedModelStatus.READY)
    client.log_outputs(candidate.run_id, [LoggedModelOutput(stored.model_id, step=0)])
    return uri, stored.model_id, manifest


def _recorded(candidate: Candidate, version: "ModelVersion") -> Registration:
    """What was decided when this champion was promoted; `unchanged` where someone else set the alias."""
    digest, name = candidate.evidence.digest, candidate.name
    if version.tags.get("vaeline.decision") != "promoted":
        return Registration(digest, name, "unchanged", ("it is the champion already",), {})
    reasons, numbers = (json.loads(version.tags.get(f"vaeline.{key}", "[]")) for key in ("reasons", "gate"))
    return Registration(digest, name, "promoted", tuple(reasons), dict(numbers))


def _how_to_use(name: str) -> str:
    uri = f"models:/{name}@{CHAMPION}"
    load = f'mlflow.pyfunc.load_model("{uri}")'
    return (
        f'`vaeline.load("{uri}")`, which checks every file first, or, without vaeline:\n\n'
        f'`{load}.predict(pixels, params={{"method": "reconstruct"}})`\n\n'
        "Methods: `reconstruct`, `encode`, `score` (ELBO in nats per image) take pixels, whole numbers 0-255, "
        "[N, C, H, W]; `decode` takes latents [N, Z]; `sample` takes anything, and `n` and `seed` in `params`."
    )


def verify_package(uri: str, loaded: "LoadedModel", example: np.ndarray) -> None:
    """Load an uploaded model back: the same files must have come, and the same numbers come out.

    Raises UserError where they do not. First as `vaeline.load` does it, which runs none of its code, then by MLflow.
    """
    import mlflow.pyfunc

    from vaeline.serving.inference import TrainedModel
    from vaeline.serving.mlflow_package import PARAMS

    back, own = load.load(uri), TrainedModel(loaded)
    if back.digest != own.digest:
        raise UserError(f"{uri}: the model that came back has digest {back.digest}, {own.digest} was sent")
    served = mlflow.pyfunc.load_model(uri)
    if not np.array_equal(served.predict(example, params=PARAMS), own.reconstruct(example), equal_nan=True):
        raise UserError(f"{uri}: the model that came back reconstructs other images than the one that was sent")
