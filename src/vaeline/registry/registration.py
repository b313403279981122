"""Registration of a model: one version a model digest, and the alias champion on the best."""

import hashlib
import json
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from vaeline.io.workspace import Workspace
from vaeline.registry.champion import ChampionChangedError, GateEvaluator, load_version, registry_lock, run_gate
from vaeline.registry.gate import Evidence
from vaeline.registry.load import LOGGED, verified
from vaeline.registry.smoke import reconstructions, smoke_test
from vaeline.registry.versions import (
    CHAMPION,
    DATA_TAG,
    DIGEST_TAG,
    MANIFEST_TAG,
    find_by_digest,
    find_champion,
    find_versions,
    parsed,
)
from vaeline.serving.inference import TrainedModel
from vaeline.serving.package import MANIFEST, SIGNATURE, RegisteredAs, TrainingCode, seal
from vaeline.serving.signatures import signing_key
from vaeline.tracking.connection import SQLITE, tolerated
from vaeline.tracking.outbox import RunOutbox

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, LoggedModelStatus
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

PATIENCE_S, POLL_S = 60.0, 0.5  # for a version that another machine makes: sealing one takes seconds
TEST_METRICS = ("elbo", "nll", "psnr")  # shown as tags of a version
UNFINISHED_TAG = "vaeline.unfinished"  # on a version whose package is not sealed yet: the model's digest
OWN_TAGS = {"vaeline.outbox", "vaeline.decision", DIGEST_TAG}  # of a run, which its version does not take over
NOTE, NOTE_DIGEST = "mlflow.note.content", "vaeline.note"  # tags: the description, the digest of the one written here


@dataclass(frozen=True)
class NewModel:
    """Trained model to register."""

    name: str  # of the registered model
    folder: Path  # model.safetensors and config.json
    loaded: "LoadedModel"
    example: np.ndarray  # a few images, uint8 [N, C, H, W]
    evidence: Evidence
    run_id: str
    note: str  # a sentence: the description of the version
    reference: np.ndarray | None = None  # ELBOs of test images, nats, for drift tests
    code: TrainingCode | None = None


def register(client: "MlflowClient", workspace: Workspace, model: NewModel, evaluator: GateEvaluator) -> dict[str, Any]:
    """Register a model once, however often and from wherever this is called, and decide on the champion.

    Returns digest, name, decision (promoted, rejected, unchanged), reasons, and the gate's numbers: the same for the
    same model and champion. The alias moves last. The decision is kept as tags of the version; for a model that is the
    champion already it is read from there, so that a repetition has the same result.
    """
    digest, name = model.evidence.digest, model.name
    with registry_lock(client, workspace):
        version = publish(client, model)
        for key, value in evidence_tags(model.evidence).items():  # it may have been evaluated again
            client.set_model_version_tag(name, version.version, key, value)
        describe_stored(client, version, model.run_id)
        decision, number = None, int(version.version)
        while decision is None and ((held := find_champion(client, name)) is None or int(held.version) != number):
            with suppress(ChampionChangedError):  # it is compared with the new one
                decision = run_gate(client, version, evaluator.candidate(model.loaded, model.evidence), evaluator)
        if decision is None:
            result, *rest = (version.tags.get(f"vaeline.{key}", "") for key in ("decision", "reasons", "gate"))
            reasons, numbers = parsed(rest[0], list), parsed(rest[1], dict)
            if result != "promoted":
                result, reasons, numbers = "unchanged", ["it is the champion already"], {}  # the alias was set by hand
        else:
            result = "promoted" if decision.promote else "rejected"
            reasons, numbers = list(decision.reasons), dict(decision.numbers)
    return {"digest": digest, "name": name, "decision": result, "reasons": reasons, "gate": numbers}


def evidence_tags(evidence: Evidence) -> dict[str, str]:
    """Evidence as a version's tags."""
    measured = {name: evidence.metrics.get(f"test/{name}") for name in TEST_METRICS}
    return {
        DIGEST_TAG: evidence.digest,
        DATA_TAG: evidence.data_digest,
        "vaeline.likelihood": evidence.likelihood,
        "vaeline.objective": evidence.objective,
        "vaeline.validation_elbo": repr(evidence.validation_elbo),
        "vaeline.active_units": str(evidence.active_units),
        **{f"vaeline.test_{name}": repr(value) for name, value in measured.items() if value is not None},
    }


def describe_stored(client: "MlflowClient", version: "ModelVersion", run_id: str) -> None:
    """Show on the page of a version's stored model its test metrics, from a run, its data set and the version.

    The metrics keep the times that they have in the run, so that a repetition adds nothing. A version that was brought
    from another store has no such page.
    """
    from mlflow.entities import Metric

    if not (address := LOGGED.fullmatch(version.source or "")):
        return
    run, model, points = client.get_run(run_id), address[1], []
    used = run.inputs.dataset_inputs if run.inputs else []
    data = {"dataset_name": used[0].dataset.name, "dataset_digest": used[0].dataset.digest} if used else {}
    for key in [key for key in run.data.metrics if key.startswith("test/")]:
        last = max(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
        points.append(Metric(key, last.value, last.timestamp, last.step, model, run_id=run_id, **data))
    client.log_batch(run_id, metrics=points)
    registered = json.dumps([{"name": version.name, "version": str(version.version)}])
    client.set_logged_model_tags(model, {"mlflow.modelVersions": registered})


def training_code(run: RunOutbox) -> TrainingCode | None:
    """Code that a run trained with, as this machine recorded it; None where it trained elsewhere, or without git."""
    (_, start), *_ = run.read(limit=1)
    commit = start["tags"].get("vaeline.git_commit")
    if not start["training"] or not commit:
        return None
    digest = hashlib.sha256(run.file(start["digest"])).hexdigest() if "digest" in start else None
    return TrainingCode(commit=commit, diff=digest)


def publish(client: "MlflowClient", model: NewModel) -> "ModelVersion":
    """The model's version: found, or made: smoke test, upload, seal under the number received, load back.

    It has no model digest, by which it is found, until all of this succeeded. Where another machine publishes the same
    model at the same time, the lower number stays, and the other process waits for it.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models.model import Model

    from vaeline.serving.mlflow_package import write_package

    if theirs := _published(client, model):
        return theirs
    signing_key()  # a wrong one ends here, not after the upload
    run, name, digest = client.get_run(model.run_id), model.name, model.evidence.digest
    with tolerated("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name, description=_usage(name))
    experiment, params = run.info.experiment_id, run.data.params
    version, stored = _left(client, name, digest)
    if stored is None:
        stored = client.create_logged_model(experiment, name, model.run_id, {DIGEST_TAG: digest}, params, "vae")
    uri, status = f"models:/{stored.model_id}", LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder, place, id_ = Path(temporary) / "model", stored.artifact_location, stored.model_id
            content = Model(artifact_path=place, run_id=model.run_id, model_uuid=id_, model_id=id_)
            write_package(folder, model.folder, model.loaded, model.example, content, model.reference)
            smoke_test(folder, model.example, reconstructions(TrainedModel(model.loaded), model.example))
            client.log_model_artifacts(stored.model_id, str(folder))
            if theirs := _published(client, model):
                return theirs
            about, tag = f"{model.note}\n\n---\n\n{_usage(name)}", {UNFINISHED_TAG: digest}
            version = version or client.create_model_version(
                name, uri, model.run_id, tag, description=about, model_id=stored.model_id
            )
            serial = int(version.version)
            if theirs := _published(client, model, serial):
                return theirs
            manifest = seal(folder, name, serial, model.loaded, model.code)
            for file in [file for file in (MANIFEST, SIGNATURE) if (folder / file).exists()]:
                client.log_model_artifact(stored.model_id, str(folder / file))
        verified(uri, registered=RegisteredAs(name, serial, {MANIFEST_TAG: manifest, DIGEST_TAG: digest}))
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("vaeline.")}
        tags |= {MANIFEST_TAG: manifest, **evidence_tags(model.evidence)}
        for key in sorted(tags.keys() - OWN_TAGS):
            client.set_model_version_tag(name, version.version, key, tags[key])
        if stored.model_id not in [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]:
            client.log_outputs(model.run_id, [LoggedModelOutput(stored.model_id, step=0)])
        client.set_model_version_tag(name, version.version, DIGEST_TAG, digest)
        client.delete_model_version_tag(name, version.version, UNFINISHED_TAG)
        status = LoggedModelStatus.READY
        return client.get_model_version(name, version.version)
    finally:
        _end(client, stored, version, status)


def _end(
    client: "MlflowClient", stored: "LoggedModel", version: "ModelVersion | None", status: "LoggedModelStatus"
) -> None:
    """Set a stored model's status, and delete a version that did not come to be.

    What a signal ends beside an sqlite store stays, as after a kill: `_left` goes on with it, under the same number.
    """
    from mlflow.entities import LoggedModelStatus

    interrupted = isinstance(sys.exception(), (KeyboardInterrupt, SystemExit))
    if version and interrupted and client.tracking_uri.startswith(SQLITE):
        return
    client.finalize_logged_model(stored.model_id, status)
    if version and status != LoggedModelStatus.READY:
        _delete_unfinished(client, version.name, version.version)


def _published(client: "MlflowClient", model: NewModel, before: int = sys.maxsize) -> "ModelVersion | None":
    """First version of this model under a number before that, verified; waits for one that another machine makes.

    One that does not get finished was left by a killed process, and is deleted; beside an sqlite store, where this
    process holds the lock, `_left` finds it. Raises UserError where one is tagged as this model and is not.
    """
    name, digest, deadline = model.name, model.evidence.digest, time.monotonic() + PATIENCE_S
    while True:
        if (version := find_by_digest(client, name, digest)) and int(version.version) < before:
            where = f"{name} version {version.version}: is tagged as this model; delete it, and register again: "
            load_version(version, where)
            return version
        if client.tracking_uri.startswith(SQLITE):
            return None
        if not (made := [version for version in _unfinished(client, name, digest) if int(version.version) < before]):
            return None
        if time.monotonic() > deadline:
            for version in made:
                _delete_unfinished(client, name, version.version)
        else:
            time.sleep(POLL_S)


def _unfinished(client: "MlflowClient", name: str, digest: str) -> "list[ModelVersion]":
    return [version for version in find_versions(client, name) if version.tags.get(UNFINISHED_TAG) == digest]


def _left(client: "MlflowClient", name: str, digest: str) -> "tuple[ModelVersion | None, LoggedModel | None]":
    """Version of this model that a killed process left unfinished, and what was uploaded for it: to be gone on with."""
    from mlflow.exceptions import MlflowException

    for version in _unfinished(client, name, digest) if client.tracking_uri.startswith(SQLITE) else ():
        with suppress(MlflowException):
            stored = client.get_logged_model((version.source or "").removeprefix("models:/"))
            for half in Path(url2pathname(urlsplit(stored.artifact_location).path)).rglob(".artifact.uploading.*"):
                half.unlink()  # of MLflow's copying
            return version, stored
        _delete_unfinished(client, name, version.version)
    return None, None


def _delete_unfinished(client: "MlflowClient", name: str, number: str) -> None:
    """Delete a version unless it was finished, or deleted, by another machine meanwhile."""
    with tolerated("RESOURCE_DOES_NOT_EXIST"):
        if UNFINISHED_TAG in client.get_model_version(name, number).tags:
            client.delete_model_version(name, number)


def annotate(client: "MlflowClient", run_id: str, text: str) -> None:
    """Put `text` on top of a run's page in MLflow; text that a user wrote there stays."""
    tags = client.get_run(run_id).data.tags
    if not tags.get(NOTE) or tags.get(NOTE_DIGEST) == hashlib.sha256(tags[NOTE].encode()).hexdigest():
        client.set_tag(run_id, NOTE, text)
        client.set_tag(run_id, NOTE_DIGEST, hashlib.sha256(text.encode()).hexdigest())


def _usage(name: str) -> str:
    uri = f"models:/{name}@{CHAMPION}"
    return (
        f'`vaeline.load("{uri}")` checks every file first. Without vaeline: `mlflow.pyfunc.load_model("{uri}")'
        '.predict(pixels, params={"method": "reconstruct"})`; methods: `reconstruct`, `encode`, `score` (ELBO) of '
        "pixels, whole numbers 0-255, [N, C, H, W]; `decode` of latents [N, Z]; `sample` with `n` and `seed`."
    )
