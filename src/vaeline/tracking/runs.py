"""Runs as the stages see them: one run a training, found again by the digest of its model.

A `RunTracker` only appends to a spool on the local disk, so it costs microseconds and cannot hang; a process of
its own (`vaeline.tracking.uploader`) sends the spool to MLflow. Nothing here imports mlflow.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vaeline.io.workspace import Workspace
from vaeline.tracking import outbox as spools
from vaeline.tracking.launch import start_shipper, wait_for
from vaeline.tracking.outbox import RunOutbox
from vaeline.tracking.provenance import RunStart, flatten_metrics, headline_metrics, run_start
from vaeline.tracking.sync import SyncReport, sync_all

__all__ = [
    "RunStart",
    "RunTracker",
    "SyncReport",
    "flatten_metrics",
    "headline_metrics",
    "latest_artifact",
    "open_model_run",
    "open_training_run",
    "run_start",
    "sync_all",
]

log = logging.getLogger(__name__)


class RunTracker:
    """One open run. Implements `vaeline.training.tracker.Tracker`.

    A point (metric, step) or picture (key, step) that the run already has is not added again: a training resumed
    from a checkpoint repeats some steps. Never raises because of tracking: a full disk costs one warning.
    """

    def __init__(self, outbox: RunOutbox, *, training: bool) -> None:
        self.outbox = outbox
        self._training = training
        self._known: dict[tuple[str, int], object] = {}
        self._broken = self._closed = False
        self._writer: int | None = None
        self._shipper: int | None = None

    def begin(self, start: Callable[[], spools.Event], *, upload: bool) -> None:
        """Take up the run, or start it where nothing is told of it yet. Raises OSError (a full disk)."""
        self.outbox.folder.mkdir(parents=True, exist_ok=True)
        self._writer = self.outbox.hold_as_writer()
        if not self.outbox.is_begun():
            self.outbox.append("start", **start())
        for event, _ in self.outbox.read():
            self._remember(event)
        if self._training and self.outbox.status() != "RUNNING":
            self.outbox.append("resume")
        self._shipper = start_shipper(self.outbox, system_metrics=self._training) if upload else None

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report numbers, at an optimiser step or (later stages) for the whole run."""
        self._append_metrics(values, step or 0, once=step is not None)

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Report a picture, uint8, H x W or H x W x 3; the same key at other steps is the same row in the UI."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(image).save(png, format="png", compress_level=1)
        self._keep(png.getvalue(), "image.png", lambda name: self._append_image(key, step, name))

    def outputs(self, reports: Path) -> None:
        """Fill a run that is made after the fact: the training curves, the evaluation, the samples.

        They are for a store that has no run of the model; what an earlier, killed filling told is not told again.
        """
        try:
            for step, values in _history(reports / "history.csv"):
                self._append_metrics(values, step, once=True, fallback=True)
            report = json.loads((reports / "metrics.json").read_text())
            self._append_metrics(headline_metrics(report), 0, once=True, fallback=True)
            for picture in sorted((reports / "samples").glob("*.png")):
                announce = partial(self._append_image, picture.stem, 0, fallback=True)
                self._keep(picture.read_bytes(), "image.png", announce)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not all of it taken into the run: %s", reports, error)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file under `folder` of the run's artifacts."""
        self._keep(path.read_bytes(), path.name, lambda name: self._append_artifact(folder, name))

    def flush(self) -> None:
        """Have all that was told survive a power failure."""
        try:
            self.outbox.flush()
        except OSError as error:
            self.give_up(error)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append("tags", values={key: str(value) for key, value in values.items()})

    def finish_training(self, model_digest: str) -> None:
        """Join the run to the model it trained: later stages find it by this digest."""
        self.tags({"vaeline.model_digest": model_digest})
        self.belongs_to(model_digest)

    def belongs_to(self, model_digest: str) -> None:
        """Let later stages find this run by the digest of its model."""
        try:
            self.outbox.remember_model(model_digest)
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: OSError) -> None:
        """Say once that there is no room for tracking, and report nothing more."""
        if not self._broken:
            log.warning("tracking stops, the run goes on: %s", error)
        self._broken = True

    def close(self, status: str = "FINISHED", wait_s: float = 0.0) -> None:
        """End the run; a later stage leaves the training's status alone.

        The shipper outlives this process until all is sent; `wait_s` waits for it.
        """
        if self._closed:
            return
        self._closed = True
        if self._training:
            self._append("end", status=status)
        if self._writer is not None:
            os.close(self._writer)
        wait_for(self._shipper, wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, SystemExit) and error.code in (130, 143)
        interrupted = stopped or isinstance(error, KeyboardInterrupt)
        self.close("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    def _append_metrics(self, values: Mapping[str, float], step: int, *, once: bool, **more: Any) -> None:
        new = {k: float(v) for k, v in values.items() if self._is_new(k, step, float(v), once=once)}
        if new:
            self._append("metrics", step=step, values=new, **more)

    def _append_image(self, key: str, step: int, name: str, **more: Any) -> None:
        if self._is_new(f"image {key}", step, name, once=self._training):
            self._append("image", key=key, step=step, file=name, **more)

    def _append_artifact(self, folder: str, name: str) -> None:
        if self._is_new(f"artifact {folder}/{Path(name).name}", 0, name, once=False):
            self._append("artifact", file=name, folder=folder)

    def _is_new(self, key: str, step: int, value: object, *, once: bool) -> bool:
        """Whether to add a point; `once`: a second value at the same step is a repetition, not a correction."""
        known = self._known.get((key, step))
        if known is not None and (known == value or (once and self._training)):
            return False
        self._known[key, step] = value
        return True

    def _remember(self, event: spools.Event) -> None:
        match event["kind"]:
            case "metrics":
                self._known.update({(k, event["step"]): v for k, v in event["values"].items()})
            case "image":
                self._known[f"image {event['key']}", event["step"]] = event["file"]
            case "artifact":
                self._known[f"artifact {event['folder']}/{Path(event['file']).name}", 0] = event["file"]

    def _keep(self, content: bytes, name: str, announce: Callable[[str], None]) -> None:
        if self._broken:
            return
        try:
            announce(self.outbox.store_file(content, name))
        except OSError as error:
            self.give_up(error)

    def _append(self, kind: str, **fields: Any) -> None:
        if self._broken:
            return
        try:
            self.outbox.append(kind, **fields)
        except OSError as error:
            self.give_up(error)


def open_training_run(workspace: Workspace, key: str, start: RunStart, *, resume: bool = False) -> RunTracker:
    """The run of the training named `key`: an unfinished one goes on, else a new one starts.

    With `resume` (a checkpoint was found) even one that already had its model goes on.
    """

    def spool() -> RunOutbox:
        latest = spools.latest_generation(workspace, key)
        return latest if latest and (resume or latest.model_digest is None) else spools.next_generation(workspace, key)

    try:
        with spools.opening(workspace):
            run = RunTracker(spool(), training=True)
            run.begin(lambda: _start(run.outbox, start, training=True), upload=True)
    except OSError as error:
        run = RunTracker(spool(), training=True)
        run.give_up(error)
    return run


def open_model_run(workspace: Workspace, model_digest: str, fallback: RunStart, *, upload: bool = True) -> RunTracker:
    """The run that trained this model, for the stages after training.

    It is the local spool's; else the one that the shipper finds in the tracking store by the tag
    `vaeline.model_digest`; else a new run, made from `fallback` and filled from what lies in reports/: history,
    metrics, samples. Without `upload` no shipper is started: the caller sends the spool, and a full disk is an OSError.
    """
    key = f"model-{model_digest[:16]}"

    def spool() -> RunOutbox:  # one of this key without its model is one whose maker was killed
        return (
            spools.find_outbox(workspace, model_digest)
            or spools.latest_generation(workspace, key)
            or spools.next_generation(workspace, key)
        )

    try:
        with spools.opening(workspace):
            run = RunTracker(spool(), training=False)
            run.begin(lambda: _start(run.outbox, fallback, training=False, model=model_digest), upload=upload)
            if run.outbox.model_digest is None:
                run.outputs(workspace.reports)
                run.belongs_to(model_digest)
    except OSError as error:
        if not upload:
            raise
        run = RunTracker(spool(), training=False)
        run.give_up(error)
    return run


def latest_artifact(workspace: Workspace, key: str, name: str) -> bytes | None:
    """The file of that name which the latest run of a training kept; None where there is none."""
    spool = spools.latest_generation(workspace, key)
    if spool is None:
        return None
    files = [spool.folder / event["file"] for event, _ in spool.read() if event["kind"] == "artifact"]
    return next((file.read_bytes() for file in reversed(files) if file.name == name and file.is_file()), None)


def _start(spool: RunOutbox, start: RunStart, *, training: bool, model: str | None = None) -> spools.Event:
    """One event that holds all that is known at the start, so that a crash leaves all of it or nothing."""
    return {
        "experiment": start.experiment,
        "name": start.name,
        "params": dict(start.params),
        "tags": {**start.tags, **({"vaeline.model_digest": model, "vaeline.made_from": "outputs"} if model else {})},
        "dataset": start.dataset,
        "diff": spool.store_file(start.diff, "uncommitted.diff") if start.diff else None,
        "training": training,
        "find": model,
        "nonce": f"{spool.folder.name}-{os.urandom(8).hex()}",
    }


def _history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of history.csv: step, metrics."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    skipped = ("epoch", "step")
    return [(int(r["step"]), {_metric_name(k): float(v) for k, v in r.items() if k not in skipped and v}) for r in rows]


def _metric_name(column: str) -> str:
    """`train_elbo` -> `train/elbo`, `sigma` -> `train/sigma`."""
    for split in ("train", "validation"):
        if column.startswith(split + "_"):
            return f"{split}/{column.removeprefix(split + '_')}"
    return f"train/{column}"
