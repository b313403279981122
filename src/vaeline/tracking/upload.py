"""Carries one spool to MLflow, each event once. Imported where MLflow is needed anyway: shipper, sync, register."""

import json
import logging
import re
import tempfile
import uuid
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image

from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import experiment_id, redact
from vaeline.tracking.outbox import Event, Progress, RunOutbox
from vaeline.tracking.provenance import user

METRICS_A_BATCH, TAGS_A_BATCH, DIGEST_LENGTH = 1000, 100, 36  # MLflow's limits
PICTURE_KEY = re.compile(r"[a-zA-Z0-9_\-./ ]+")
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}  # would be refused again

log = logging.getLogger(__name__)


@dataclass
class Courier:
    """Sends what a store does not have of a spool. The caller holds the spool's shipping lock.

    Everything keeps its original time, so that sending twice (after a crash, a lost answer) changes nothing: MLflow
    knows metrics by (key, time, step, value), the run is found again by a tag, and files keep their names.
    """

    spool: RunOutbox
    client: MlflowClient
    workspace: Workspace
    progress: Progress = field(init=False)
    _checked: bool = False

    def __post_init__(self) -> None:
        self.progress = Progress.of(self.spool, self.client.tracking_uri)
        if self.spool.size() < self.progress.offset:  # a power failure cut the log: what is sent again changes nothing
            self.progress.offset = 0

    def ship(self) -> int:
        """Send everything unsent; returns the number of events. Raises what MLflow raises."""
        if not self._checked:
            self._forget_deleted_run()
        count = 0
        events = self.spool.read(self.progress.offset)
        while batch := list(islice(events, 200)):
            self.spool.flush()  # a store is never to know more than the log
            self._send(batch)
            count += len(batch)
        return count

    def _forget_deleted_run(self) -> None:
        """Start over where the run has been deleted from the store, or the store anew."""
        if self.progress.run_id is not None:
            try:
                gone = self.client.get_run(self.progress.run_id).info.lifecycle_stage == "deleted"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                gone = True
            if gone:
                self.progress = Progress(self.progress.path)
        self._checked = True

    def _send(self, batch: list[tuple[Event, int]]) -> None:
        metrics: list[Metric] = []
        for event, offset in batch:
            if event["kind"] != "start" and event.get("fallback") and not self.progress.made:
                continue
            if event["kind"] == "metrics":
                metrics += [Metric(k, v, event["time"], event["step"]) for k, v in event["values"].items()]
                continue
            self._send_metrics(metrics)
            metrics = []
            try:
                getattr(self, f"_send_{event['kind']}", self._ignore)(event)
            except MlflowException as error:
                self._accept_refusal(error)
            except (ValueError, FileNotFoundError) as error:  # a picture's name or file is at fault
                log.warning("dropped a %s: %s", event["kind"], error)
            self._reached(offset)
        self._send_metrics(metrics)
        self._reached(batch[-1][1])

    def _reached(self, offset: int) -> None:
        self.progress.offset = offset
        self.progress.write()

    @property
    def _run(self) -> str:
        if self.progress.run_id is None:
            raise MlflowException.invalid_parameter_value(f"{self.spool.events}: its first line is gone")
        return self.progress.run_id

    def _send_metrics(self, metrics: list[Metric]) -> None:
        for first in range(0, len(metrics), METRICS_A_BATCH):
            part = metrics[first : first + METRICS_A_BATCH]
            try:
                self.client.log_batch(self._run, metrics=part)
            except MlflowException as error:
                self._accept_refusal(error)
                if len(part) > 1:  # one by one, so that a bad name costs only itself
                    for metric in part:
                        self._send_metrics([metric])

    def _accept_refusal(self, error: MlflowException) -> None:
        """Drop what MLflow will never take; pass on what may work later."""
        if error.error_code not in REFUSED:
            raise error
        log.warning("refused: %s", redact(str(error)).splitlines()[0])

    def _ignore(self, event: Event) -> None:
        log.warning("unknown event %s", event["kind"])

    def _send_start(self, event: Event) -> None:
        experiment = experiment_id(self.client, event["experiment"], self.workspace)
        run_id = self._find({"vaeline.spool": event["nonce"]}, [experiment])
        self.progress.made = True
        if run_id is None and event["find"]:
            everywhere = [e.experiment_id for e in self.client.search_experiments()]
            run_id = self._find({"vaeline.model_digest": event["find"]}, everywhere)
            self.progress.made = run_id is None
        if run_id is None:
            tags = {"mlflow.user": user(), "vaeline.spool": event["nonce"]}
            run = self.client.create_run(experiment, event["time"], tags, event["name"])
            run_id = str(run.info.run_id)
        self.progress.run_id = run_id
        if self.progress.made:
            self._describe(event)

    def _describe(self, event: Event) -> None:
        """Fill a new run with what is known at its start."""
        for part in _parts(event["params"]):
            self.client.log_batch(self._run, params=[Param(k, v) for k, v in part])
        self._send_tags({"values": event["tags"]})
        if event["dataset"]:
            self.client.log_inputs(self._run, datasets=[_dataset(event["dataset"])])
        if not event["training"]:
            self.client.set_terminated(self._run, "FINISHED", event["time"])
        if event.get("diff"):
            self._send_artifact({"file": event["diff"], "folder": "git"})

    def _find(self, tags: dict[str, str], experiments: list[str]) -> str | None:
        """The latest run with these tags."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs(experiments, wanted, max_results=1, order_by=["start_time DESC"])
        return str(runs[0].info.run_id) if runs else None

    def _send_tags(self, event: Event) -> None:
        for part in _parts(event["values"]):
            self.client.log_batch(self._run, tags=[RunTag(k, v) for k, v in part])

    def _send_resume(self, event: Event) -> None:
        self.client.update_run(self._run, status="RUNNING")

    def _send_end(self, event: Event) -> None:
        self.client.set_terminated(self._run, event["status"], event["time"])

    def _send_artifact(self, event: Event) -> None:
        self.client.log_artifact(self._run, str(self.spool.folder / event["file"]), event["folder"] or None)

    def _send_image(self, event: Event) -> None:
        """As `log_image` stores it, but under names that stay the same: sent again, a picture takes its own place."""
        if not PICTURE_KEY.fullmatch(event["key"]):
            raise ValueError(f"MLflow allows no picture to be called {event['key']!r}")
        unique = uuid.uuid5(uuid.NAMESPACE_OID, event["file"])
        name = f"{event['key'].replace('/', '~')}+step+{event['step']}+timestamp+{event['time']}+{unique}"
        with Image.open(self.spool.folder / event["file"]) as image, tempfile.TemporaryDirectory() as folder:
            image.save(Path(folder) / f"{name}.png")
            compress_image_size(image).save(Path(folder) / f"{name}+compressed.webp")
            self.client.log_artifacts(self._run, folder, "images")
        self.client.set_tag(self._run, MLFLOW_LOGGED_IMAGES, "True")


def _parts(values: dict[str, str]) -> list[list[tuple[str, str]]]:
    items = list(values.items())
    return [items[first : first + TAGS_A_BATCH] for first in range(0, len(items), TAGS_A_BATCH)]


def _dataset(described: dict[str, Any]) -> DatasetInput:
    """The prepared data as MLflow shows it: shape, and counts of each split."""
    manifest = described["manifest"]
    pixels = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *manifest.get("shape", [])]}}
    dataset = Dataset(
        name=described["name"],
        digest=described["digest"][:DIGEST_LENGTH],
        source_type="dvc",
        source=json.dumps({"uri": "data/prepared", "sha256": described["digest"]}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([pixels]), "targets": None}}),
        profile=json.dumps({split: facts.get("count") for split, facts in manifest.get("splits", {}).items()}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
