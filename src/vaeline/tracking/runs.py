"""Runs of the stages: one run a training, found again by the digest of its model.

A `RunTracker` only writes to the outbox on the local disk, so it costs microseconds and cannot hang; the uploader, a
process of its own, sends the outbox to MLflow. Nothing here imports mlflow.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import Workspace
from vaeline.tracking.outbox import Outbox, RunOutbox, digest_of
from vaeline.tracking.provenance import RunStart, headline_metrics
from vaeline.tracking.uploader import start_uploader
from vaeline.training.history import Tracker, read_history

log = logging.getLogger(__name__)


class RunTracker(Tracker):
    """One open run.

    A point (metric, step) or picture (key, step) that the run already has is not added again: a training resumed
    from a checkpoint repeats some steps. Never raises because of tracking: a full disk costs one warning.
    """

    def __init__(
        self, workspace: Workspace, find: Callable[[Outbox], RunOutbox], *, training: bool, upload: bool = True
    ) -> None:
        """Open the run that `find` finds or makes; without `upload`, errors of the outbox are raised."""
        outbox = Outbox(workspace)
        self.outbox = RunOutbox(outbox, 0, "")
        self._training, self._failed = training, False
        self._known: dict[tuple[str, int], object] = {}
        self._writer: int | None = None
        try:
            with outbox.transaction():  # so that a crash leaves the whole start or nothing
                self.outbox = find(outbox)
                self._writer = self.outbox.hold("writer", shared=True, wait=True)
                if training and self.outbox.status() != "RUNNING":
                    self.outbox.append("resume")
            for _, event in self.outbox.read():
                match event:
                    case {"when": "created"}:
                        pass  # the run in the store may have other values
                    case {"kind": "metrics", "step": step, "values": values}:
                        self._known |= {(key, step): value for key, value in values.items()}
                    case {"kind": "image", "step": step, "key": key, "digest": digest}:
                        self._known[f"image {key}", step] = digest
                    case {"kind": "artifact", "folder": folder, "name": name, "digest": digest}:
                        self._known[f"artifact {folder}/{name}", 0] = digest
            if upload:
                start_uploader(workspace, self.outbox)
        except (OSError, UserError) as error:
            if not upload:
                raise
            self._give_up(error)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report numbers, at an optimiser step or (later stages) for the whole run."""
        if new := {key: float(value) for key, value in values.items() if self._is_new(key, step, float(value))}:
            self._try(self.outbox.append, "metrics", step=step or 0, values=new)

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Report a picture, uint8, H x W or H x W x 3; the same key at other steps is the same row in the UI."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(image).save(png, format="png", compress_level=1)
        if self._is_new(f"image {key}", step, digest_of(png.getvalue())):
            self._try(self.outbox.append, "image", png.getvalue(), key=key, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file under `folder` of the run's artifacts."""
        content = path.read_bytes()
        if self._is_new(f"artifact {folder}/{path.name}", None, digest_of(content)):
            self._try(self.outbox.append, "artifact", content, name=path.name, folder=folder)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._try(self.outbox.append, "tags", values={key: str(value) for key, value in values.items()})

    def finish_training(self, model_digest: str) -> None:
        """Join the run to the model it trained: later stages and the store find it by this digest."""
        self._try(self.outbox.set_model, model_digest)

    def flush(self) -> None:
        """Make everything reported so far survive a power failure."""
        self._try(self.outbox.outbox.flush)

    def close(self, status: str = "FINISHED") -> None:
        """End the run; a later stage leaves the training's status alone. The uploader ends once all is sent."""
        if self._writer is None:
            return
        if self._training:
            self._try(self.outbox.append, "end", status=status)
        self.outbox.outbox.close()
        os.close(self._writer)
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, SystemExit) and error.code in (130, 143)
        interrupted = stopped or isinstance(error, KeyboardInterrupt)
        self.close("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    def _is_new(self, key: str, step: int | None, value: object) -> bool:
        """Whether to add a point: in a training a second value at the same step is a repetition, no correction."""
        known = self._known.get((key, step or 0))
        if known == value or (known is not None and self._training and step is not None):
            return False
        self._known[key, step or 0] = value
        return True

    def _try(self, action: Callable[..., None], *values: Any, **fields: Any) -> None:
        if not self._failed:
            try:
                action(*values, **fields)
            except (OSError, UserError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("tracking stops, the run goes on: %s", error)
        self._failed = True


def open_training_run(workspace: Workspace, key: str, start: RunStart, *, resume: bool = False) -> RunTracker:
    """The run of the training named `key`: an unfinished one goes on, else a new one starts.

    With `resume` (a checkpoint was found) even one that already had its model goes on.
    """

    def find(outbox: Outbox) -> RunOutbox:
        latest = outbox.latest("key", key)
        return latest if latest and (resume or latest.model is None) else _create(outbox, key, start)

    return RunTracker(workspace, find, training=True)


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

    return RunTracker(workspace, find, training=False, upload=upload)


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


def _create(outbox: Outbox, key: str, start: RunStart, model: str | None = None) -> RunOutbox:
    """A run with its first event; `model`: digest of one that was not trained here."""
    run = outbox.create(key, model)
    joined = {"vaeline.model_digest": model, "vaeline.made_from": "outputs"} if model else {}
    fields: dict[str, Any] = vars(start) | {"tags": {**start.tags, **joined}, "training": model is None, "model": model}
    run.append("start", fields.pop("diff") or None, **fields, token=f"{run.name}-{os.urandom(8).hex()}")
    return run


def _outputs(reports: Path) -> Iterator[tuple[str, bytes | None, dict[str, Any]]]:
    """Events (kind, file, fields) of what lies in reports/: the training curves, the evaluation, the samples."""
    try:
        if (reports / "history.csv").exists():
            for row in map(asdict, read_history(reports / "history.csv")):
                step, _ = row.pop("step"), row.pop("epoch")
                values = {  # train_elbo -> train/elbo, sigma -> train/sigma
                    name.replace("_", "/", 1) if name.startswith(("train_", "validation_")) else f"train/{name}": value
                    for name, value in row.items()
                    if value is not None
                }
                yield "metrics", None, {"step": step, "values": values}
        if (reports / "metrics.json").exists():
            yield "metrics", None, {"step": 0, "values": headline_metrics(read_metrics(reports / "metrics.json"))}
        for picture in sorted((reports / "samples").glob("*.png")):
            yield "image", picture.read_bytes(), {"key": picture.stem, "step": 0}
    except (OSError, UserError) as error:
        log.warning("%s: not all of it taken into the run: %s", reports, error)
