"""Runs of the stages: one run a training, found again by the digest of its model.

A `RunTracker` only writes to the outbox on the local disk, so it costs microseconds and cannot hang; the uploader, a
process of its own, sends the outbox to MLflow. Nothing here imports mlflow.
"""

import io
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import Workspace
from vaeline.tracking.outbox import Event, Outbox, RunOutbox, digest_of
from vaeline.tracking.provenance import RunStart, headline_metrics
from vaeline.tracking.uploader import start_uploader
from vaeline.training.history import Tracker, read_history

log = logging.getLogger(__name__)


class RunTracker(Tracker):
    """One open run.

    A point (metric, step) or picture (key, step) that the run already has is not added again: a training resumed
    from a checkpoint repeats some steps. Never raises because of tracking: a full disk costs one warning.
    """

    def __init__(self, outbox: RunOutbox, *, training: bool) -> None:
        self.outbox = outbox
        self._training = training
        self._known: dict[tuple[str, int], object] = {}
        self._from_outputs: set[tuple[str, int]] = set()
        self._failed = self._closed = False
        self._writer: int | None = None

    def begin(self) -> None:
        """Open the run, in the transaction that found or created it. Raises what the outbox raises."""
        self._writer = self.outbox.hold("writer", shared=True, wait=True)
        for _, event in self.outbox.read():
            points = _points(event)
            self._known |= points
            if event.get("when") == "created":
                self._from_outputs |= points.keys()
            else:
                self._from_outputs -= points.keys()
        if self._training and self.outbox.status() != "RUNNING":
            self.outbox.append("resume")

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report numbers, at an optimiser step or (later stages) for the whole run."""
        new: dict[str, dict[str, float]] = {}
        for key, value in values.items():
            new.setdefault(self._when(key, step, float(value)), {})[key] = float(value)
        for when, numbers in new.items():
            self._append("metrics", step=step or 0, values=numbers, when=when)

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Report a picture, uint8, H x W or H x W x 3; the same key at other steps is the same row in the UI."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(image).save(png, format="png", compress_level=1)
        when = self._when(f"image {key}", step, digest_of(png.getvalue()))
        self._append("image", png.getvalue(), key=key, step=step, when=when)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file under `folder` of the run's artifacts."""
        content = path.read_bytes()
        when = self._when(f"artifact {folder}/{path.name}", None, digest_of(content))
        self._append("artifact", content, name=path.name, folder=folder, when=when)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append("tags", values={key: str(value) for key, value in values.items()})

    def finish_training(self, model_digest: str) -> None:
        """Join the run to the model it trained: later stages and the store find it by this digest."""
        self._try(lambda: self.outbox.set_model(model_digest))

    def flush(self) -> None:
        """Make everything reported so far survive a power failure."""
        self._try(self.outbox.outbox.flush)

    def give_up(self, error: Exception) -> None:
        """Log once that there is no room for tracking, and report nothing more."""
        if not self._failed:
            log.warning("tracking stops, the run goes on: %s", error)
        self._failed = True

    def close(self, status: str = "FINISHED") -> None:
        """End the run; a later stage leaves the training's status alone. The uploader ends once all is sent."""
        if self._closed:
            return
        self._closed = True
        if self._training:
            self._append("end", status=status)
        self._try(self.outbox.outbox.close)
        if self._writer is not None:
            os.close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, SystemExit) and error.code in (130, 143)
        interrupted = stopped or isinstance(error, KeyboardInterrupt)
        self.close("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    def _when(self, key: str, step: int | None, value: object) -> str:
        """Whether to add a point: never, always, or where the run is found in the store, which may have another value.

        In a training a second value at the same step is a repetition, no correction.
        """
        point = (key, step or 0)
        known = self._known.get(point)
        if known == value or (known is not None and self._training and step is not None):
            when = "found" if point in self._from_outputs else "never"
        else:
            self._known[point], when = value, "always"
        self._from_outputs.discard(point)
        return when

    def _append(self, kind: str, content: bytes | None = None, **fields: Any) -> None:
        if fields.get("when") != "never":
            self._try(lambda: self.outbox.append(kind, content, **fields))

    def _try(self, action: Callable[[], None]) -> None:
        if not self._failed:
            try:
                action()
            except (OSError, UserError) as error:
                self.give_up(error)


def open_training_run(workspace: Workspace, key: str, start: RunStart, *, resume: bool = False) -> RunTracker:
    """The run of the training named `key`: an unfinished one goes on, else a new one starts.

    With `resume` (a checkpoint was found) even one that already had its model goes on.
    """

    def find(outbox: Outbox) -> RunOutbox:
        latest = outbox.latest("key", key)
        return latest if latest and (resume or latest.model is None) else _create(outbox, key, start)

    return _open(workspace, find, training=True)


def open_model_run(workspace: Workspace, model_digest: str, fallback: RunStart, *, upload: bool = True) -> RunTracker:
    """The run that trained this model, for the stages after training.

    It is the one in the outbox; else the one that the uploader finds in the tracking store by the tag
    `vaeline.model_digest`; else a new run, made from `fallback` and filled from what lies in reports/: history,
    metrics, samples. Without `upload` no uploader is started: the caller sends the run, and a full disk is an OSError.
    """

    def find(outbox: Outbox) -> RunOutbox:
        if (found := outbox.latest("model", model_digest)) is not None:
            return found
        run = _create(outbox, f"model-{model_digest[:16]}", fallback, model_digest)
        for kind, content, fields in _outputs(workspace.reports):
            run.append(kind, content, when="created", **fields)
        return run

    return _open(workspace, find, training=False, upload=upload)


def latest_artifact(workspace: Workspace, key: str, name: str) -> bytes | None:
    """The file of that name which the latest run of a training kept; None where there is none."""
    try:
        if (run := Outbox(workspace).latest("key", key)) is not None:
            for _, event in reversed(run.read()):
                if event["kind"] == "artifact" and event["name"] == name:
                    return run.file(event["digest"])
    except (OSError, UserError) as error:
        log.warning("%s of the latest run is not known: %s", name, error)
    return None


def _open(
    workspace: Workspace, find: Callable[[Outbox], RunOutbox], *, training: bool, upload: bool = True
) -> RunTracker:
    outbox = Outbox(workspace)
    run = RunTracker(RunOutbox(outbox, 0, ""), training=training)
    try:
        with outbox.transaction():  # so that a crash leaves the whole start or nothing
            run.outbox = find(outbox)
            run.begin()
        if upload:
            start_uploader(workspace, run.outbox, system_metrics=training)
    except (OSError, UserError) as error:
        if not upload:
            raise
        run.give_up(error)
    return run


def _create(outbox: Outbox, key: str, start: RunStart, model: str | None = None) -> RunOutbox:
    """A run with its first event; `model`: digest of one that was not trained here."""
    run = outbox.create(key, model)
    joined = {"vaeline.model_digest": model, "vaeline.made_from": "outputs"} if model else {}
    fields: dict[str, Any] = vars(start) | {"tags": {**start.tags, **joined}, "training": model is None, "model": model}
    run.append("start", fields.pop("diff") or None, **fields, token=f"{run.name}-{os.urandom(8).hex()}")
    return run


def _points(event: Event) -> dict[tuple[str, int], object]:
    """The points of an event and their values, as `RunTracker` compares them."""
    match event["kind"]:
        case "metrics":
            return {(key, event["step"]): value for key, value in event["values"].items()}
        case "image":
            return {(f"image {event['key']}", event["step"]): event["digest"]}
        case "artifact":
            return {(f"artifact {event['folder']}/{event['name']}", 0): event["digest"]}
    return {}


def _outputs(reports: Path) -> list[tuple[str, bytes | None, dict[str, Any]]]:
    """Events (kind, file, fields) of what lies in reports/: the training curves, the evaluation, the samples."""
    found: list[tuple[str, bytes | None, dict[str, Any]]] = []
    try:
        if (reports / "history.csv").exists():
            for row in map(asdict, read_history(reports / "history.csv")):
                step, _ = row.pop("step"), row.pop("epoch")
                values = {_metric_name(column): value for column, value in row.items() if value is not None}
                found.append(("metrics", None, {"step": step, "values": values}))
        if (reports / "metrics.json").exists():
            headline = headline_metrics(read_metrics(reports / "metrics.json"))
            found.append(("metrics", None, {"step": 0, "values": headline}))
        for picture in sorted((reports / "samples").glob("*.png")):
            found.append(("image", picture.read_bytes(), {"key": picture.stem, "step": 0}))
    except (OSError, UserError) as error:
        log.warning("%s: not all of it taken into the run: %s", reports, error)
    return found


def _metric_name(column: str) -> str:
    """`train_elbo` -> `train/elbo`, `sigma` -> `train/sigma`."""
    split, _, rest = column.partition("_")
    return f"{split}/{rest}" if split in ("train", "validation") else f"train/{column}"
