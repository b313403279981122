"""Runs as the stages see them: one run a training, found again by the digest of its model.

A `RunTracker` only appends to a spool on the local disk, so it costs microseconds and cannot hang; a process of
its own (`vaeline.tracking.ship`) sends the spool to MLflow. Nothing here imports mlflow.
"""

import csv
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vaeline.tracking import spool as spools
from vaeline.tracking.provenance import RunStart, flatten_metrics, headline_metrics, run_start
from vaeline.tracking.spool import Spool
from vaeline.tracking.sync import SyncReport, sync_all
from vaeline.workspace import REPORTS, repository_root

__all__ = [
    "RunStart",
    "RunTracker",
    "SyncReport",
    "flatten_metrics",
    "headline_metrics",
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

    def __init__(self, spool: Spool, *, training: bool, ship: bool = True) -> None:
        self.spool = spool
        self._training = training
        self._known: dict[tuple[str, int], object] = {}
        self._broken = self._closed = False
        self._writer = spool.hold_as_writer()
        for event, _ in spool.read():
            self._remember(event)
        if training and spool.status() != "RUNNING":
            spool.append("resume")
        self._shipper = _start_shipper(spool, system_metrics=training) if ship else None

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report numbers, at an optimiser step or (later stages) for the whole run."""
        at = step or 0
        new = {k: float(v) for k, v in values.items() if self._is_new(k, at, float(v), once=step is not None)}
        if new:
            self._append("metrics", step=at, values=new)

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Report a picture, uint8, H x W or H x W x 3; the same key at other steps is the same row in the UI."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(image).save(png, format="png", compress_level=1)
        self._keep(png.getvalue(), "image.png", lambda name: self._append_image(key, step, name))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file under `folder` of the run's artifacts."""
        self._keep(path.read_bytes(), path.name, lambda name: self._append_artifact(folder, name))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append("tags", values={key: str(value) for key, value in values.items()})

    def finish_training(self, model_digest: str) -> None:
        """Join the run to the model it trained: later stages find it by this digest."""
        self.tags({"vaeline.model_digest": model_digest})
        try:
            self.spool.remember_model(model_digest)
        except OSError as error:
            self._give_up(error)

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
        _wait_for(self._shipper, wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, SystemExit) and error.code in (130, 143)
        interrupted = stopped or isinstance(error, KeyboardInterrupt)
        self.close("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    def _append_image(self, key: str, step: int, name: str) -> None:
        if self._is_new(f"image {key}", step, name, once=self._training):
            self._append("image", key=key, step=step, file=name)

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
        try:
            announce(self.spool.store_file(content, name))
        except OSError as error:
            self._give_up(error)

    def _append(self, kind: str, **fields: Any) -> None:
        if self._broken:
            return
        try:
            self.spool.append(kind, **fields)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        log.warning("tracking stops, the run goes on: %s", error)


def open_training_run(key: str, start: RunStart, *, resume: bool = False) -> RunTracker:
    """The run of the training named `key`: an unfinished one goes on, else a new one starts.

    With `resume` (a checkpoint was found) even one that already had its model goes on.
    """
    with spools.opening():
        spool = spools.latest_generation(key)
        if spool is None or (spool.model_digest is not None and not resume):
            spool = spools.next_generation(key)
            _write_start(spool, start, training=True)
        return RunTracker(spool, training=True)


def open_model_run(model_digest: str, fallback: RunStart, *, ship: bool = True) -> RunTracker:
    """The run that trained this model, for the stages after training.

    It is the local spool's; else the one that the shipper finds in the tracking store by the tag
    `vaeline.model_digest`; else a new run, made from `fallback` and filled from what lies in reports/: history,
    metrics, samples. Without `ship` no shipper is started: the caller sends the spool.
    """
    with spools.opening():
        spool = spools.find_spool(model_digest)
        if spool is None:
            spool = spools.next_generation(f"model-{model_digest[:16]}")
            _write_start(spool, fallback, training=False, model=model_digest)
            _write_outputs(spool, REPORTS)
            spool.remember_model(model_digest)
        return RunTracker(spool, training=False, ship=ship)


def _write_start(spool: Spool, start: RunStart, *, training: bool, model: str | None = None) -> None:
    tags = {**start.tags, **({"vaeline.model_digest": model, "vaeline.made_from": "outputs"} if model else {})}
    fields = {"experiment": start.experiment, "name": start.name, "params": dict(start.params), "tags": tags}
    nonce = f"{spool.folder.name}-{os.urandom(8).hex()}"
    spool.append("start", **fields, dataset=start.dataset, training=training, find=model, nonce=nonce)
    if start.diff:
        name = spool.store_file(start.diff, "uncommitted.diff")
        spool.append("artifact", file=name, folder="git", fallback=not training)


def _write_outputs(spool: Spool, reports: Path) -> None:
    """Fill a run that is made after the fact: the training curves, the evaluation, the samples."""
    try:
        for step, values in _history(reports / "history.csv"):
            spool.append("metrics", step=step, values=values, fallback=True)
        report = json.loads((reports / "metrics.json").read_text())
        spool.append("metrics", step=0, values=headline_metrics(report), fallback=True)
        for picture in sorted((reports / "samples").glob("*.png")):
            name = spool.store_file(picture.read_bytes(), "image.png")
            spool.append("image", key=picture.stem, step=0, file=name, fallback=True)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: not all of it taken into the run: %s", reports, error)


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


def _start_shipper(spool: Spool, *, system_metrics: bool) -> int | None:
    """Start `python -m vaeline.tracking.ship` in its own session, so that it outlives a killed stage; its pid.

    It ends by itself soon after the last writer of the spool has. `VAELINE_SHIPPER=off` starts none.
    """
    if os.environ.get("VAELINE_SHIPPER") == "off":
        return None
    folder = spool.folder.absolute()
    arguments = [sys.executable, "-m", "vaeline.tracking.ship", str(folder)]
    arguments += ["--system-metrics"] if system_metrics else []
    environment = {**os.environ, "DVC_ROOT": str(repository_root().absolute())}
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    files += [(os.POSIX_SPAWN_OPEN, fd, str(folder / "ship.log"), create, 0o644) for fd in (1, 2)]
    try:
        return os.posix_spawn(sys.executable, arguments, environment, file_actions=files, setsid=True)
    except (OSError, NotImplementedError) as error:
        log.warning("tracking stays in %s until `vaeline sync`: %s", folder, error)
        return None


def _wait_for(pid: int | None, seconds: float) -> None:
    """Wait a bounded time for the shipper."""
    if pid is None:
        return
    deadline = time.monotonic() + seconds
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.02)
    except ChildProcessError:
        return
