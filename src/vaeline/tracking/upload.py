"""Upload of one run's outbox to MLflow, each event once."""

import json
import logging
import re
import tempfile
import uuid
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from vaeline.errors import redact
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import all_pages, experiment_id, tolerated
from vaeline.tracking.mlflow_internals import MLFLOW_LOGGED_IMAGES, compress_image_size
from vaeline.tracking.outbox import Event, RunOutbox
from vaeline.tracking.provenance import user

EVENTS_A_BATCH = 200
METRICS_A_BATCH, PARAMS_A_BATCH, DIGEST_LENGTH = 1000, 100, 36  # MLflow's limits
PICTURE_KEY = re.compile(r"[a-zA-Z0-9_\-./ ]+")
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}  # would be refused again

log = logging.getLogger(__name__)


class Upload:
    """Sends what a tracking store does not have of a run. The caller holds the run's uploader lock.

    Everything keeps its original time, so that sending twice (after a crash, a lost answer) changes nothing: MLflow
    knows metrics by (key, time, step, value), the run is found again by a tag, and files keep their names.
    """

    def __init__(self, run: RunOutbox, client: MlflowClient, workspace: Workspace) -> None:
        self._outbox, self._client, self._workspace = run, client, workspace
        self._last, run_id, self._created = run.progress(client.tracking_uri)
        self._run_id, self._checked = run_id or "", False

    def send(self) -> int:
        """Send everything unsent; returns the number of events. Raises what MLflow raises."""
        if self._run_id and not self._checked:
            gone = True  # where the store is a new one
            with tolerated("RESOURCE_DOES_NOT_EXIST"):
                gone = self._client.get_run(self._run_id).info.lifecycle_stage == "deleted"
            if gone:
                self._last, self._run_id, self._created = 0, "", False  # start over
        self._checked, count = True, 0
        while batch := self._outbox.read(self._last, EVENTS_A_BATCH):
            self._outbox.outbox.flush()  # after a power failure a store is not to have more than the outbox
            self._send_batch(batch)
            count += len(batch)
        return count

    def _send_batch(self, batch: list[tuple[int, Event]]) -> None:
        metrics: list[Metric] = []
        for number, event in batch:
            if event["kind"] != "start" and not self._run_id:
                continue  # its start was refused
            if event["kind"] == "metrics":
                if self._created or event.get("when") != "created":
                    metrics += [Metric(k, v, event["time"], event["step"]) for k, v in event["values"].items()]
                continue
            self._send_metrics(metrics)
            metrics = []
            try:
                self._send_event(event)
            except MlflowException as error:
                self._accept_refusal(error)
            except ValueError as error:  # a picture's name or content is at fault
                log.warning("dropped a %s: %s", event["kind"], error)
            self._set_progress(number)
        self._send_metrics(metrics)
        self._set_progress(batch[-1][0])

    def _set_progress(self, number: int) -> None:
        self._last = number
        self._outbox.set_progress(self._client.tracking_uri, number, self._run_id or None, self._created)

    def _send_metrics(self, metrics: list[Metric]) -> None:
        for part in _parts(metrics, METRICS_A_BATCH):
            try:
                self._client.log_batch(self._run_id, metrics=part)
            except MlflowException as error:
                self._accept_refusal(error)
                if len(part) > 1:  # one by one, so that a bad name costs only itself
                    for metric in part:
                        self._send_metrics([metric])

    def _accept_refusal(self, error: MlflowException) -> None:
        """Drop what MLflow will never take; pass on what may work later."""
        if error.error_code not in REFUSED:
            raise error
        log.warning("refused: %s", redact(str(error)).partition("\n")[0])

    def _send_event(self, event: Event) -> None:
        match event["kind"]:
            case "start":
                self._send_start(event)
            case "tags":
                self._client.log_batch(self._run_id, tags=[RunTag(k, v) for k, v in event["values"].items()])
            case "resume":
                self._client.update_run(self._run_id, status="RUNNING")
            case "end":
                self._client.set_terminated(self._run_id, event["status"], event["time"])
            case "artifact":
                self._send_artifact(event["digest"], event["name"], event["folder"])
            case "image" if self._created or event.get("when") != "created":
                self._send_image(event)

    def _send_start(self, event: Event) -> None:
        client = self._client
        experiment = experiment_id(client, event["experiment"], self._workspace)
        run_id, self._created = self._find("vaeline.outbox", event["token"], [experiment]), True
        if not run_id and event["model"]:
            everywhere = [e.experiment_id for e in all_pages(client.search_experiments)]
            run_id = self._find("vaeline.model_digest", event["model"], everywhere)
            self._created = not run_id
        if not run_id:
            tags = {"mlflow.user": user(), "vaeline.outbox": event["token"]}
            run_id = str(client.create_run(experiment, event["time"], tags, event["name"]).info.run_id)
        self._run_id = run_id
        if not self._created:
            return
        for part in _parts(event["params"].items(), PARAMS_A_BATCH):
            client.log_batch(run_id, params=[Param(k, v) for k, v in part])
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in event["tags"].items()])
        if data := event["dataset"]:  # shape and counts as MLflow shows them
            manifest = data["manifest"]
            counts = {split: facts.get("count") for split, facts in manifest.get("splits", {}).items()}
            dataset = Dataset(
                name=data["name"],
                digest=data["digest"][:DIGEST_LENGTH],
                source_type="dvc",
                source=json.dumps({"uri": "data/prepared", "sha256": data["digest"]}),
                profile=json.dumps(counts | {"shape": manifest.get("shape")}),
            )
            client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        if not event["training"]:
            client.set_terminated(run_id, "FINISHED", event["time"])
        if "digest" in event:
            self._send_artifact(event["digest"], "uncommitted.diff", "git")

    def _find(self, tag: str, value: str, experiments: list[str]) -> str:
        """The latest run with this tag; empty where there is none."""
        wanted = f"tags.`{tag}` = '{value}'"
        runs = self._client.search_runs(experiments, wanted, max_results=1, order_by=["start_time DESC"])
        return str(runs[0].info.run_id) if runs else ""

    def _send_artifact(self, digest: str, name: str, folder: str) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(self._outbox.file(digest))
            self._client.log_artifact(self._run_id, str(path), folder or None)

    def _send_image(self, event: Event) -> None:
        """As `log_image` stores it, but under fixed names: a picture sent again replaces itself."""
        if not PICTURE_KEY.fullmatch(event["key"]):
            raise ValueError(f"MLflow allows no picture to be called {event['key']!r}")
        unique = uuid.uuid5(uuid.NAMESPACE_OID, event["digest"])
        name = f"{event['key'].replace('/', '~')}+step+{event['step']}+timestamp+{event['time']}+{unique}"
        png = BytesIO(self._outbox.file(event["digest"]))
        with Image.open(png) as image, tempfile.TemporaryDirectory() as folder:
            image.save(Path(folder) / f"{name}.png")
            compress_image_size(image).save(Path(folder) / f"{name}+compressed.webp")
            self._client.log_artifacts(self._run_id, folder, "images")
        self._client.set_tag(self._run_id, MLFLOW_LOGGED_IMAGES, "True")


def _parts(values: Iterable[Any], size: int) -> list[list[Any]]:
    items = list(values)
    return [items[first : first + size] for first in range(0, len(items), size)]
