"""What tracking costs a training: the same one with a tracked run and with nobody listening, by turns, one thread."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.row import Row
from benchmarks.training import one_thread
from vaeline.config import Params, read_params
from vaeline.io.workspace import current_workspace
from vaeline.tracking.outbox import RunOutbox
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_training_run
from vaeline.training.history import Tracker
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

ROOT = Path(__file__).parents[1]
PAIRS, IMAGES, EPOCHS = 4, 20_000, 8
MOST, MOST_OPENING_S = 1.02, 1.0


def rows() -> list[Row]:
    """The training's time with tracking over that without, and what opening and closing a run takes."""
    params = read_params(ROOT / "params.yaml")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 28, 28), dtype=np.uint8)
    splits = Splits(pixels, pixels[:1000], "none")
    ratios, openings = [], []
    with _private_store(), one_thread():
        _seconds(params, splits, Tracker())  # warms up
        for pair in range(PAIRS):
            begin = time.perf_counter()
            run = open_training_run(current_workspace(), f"benchmark-{pair}", run_start(current_workspace(), params))
            opened = time.perf_counter() - begin
            tracked = _seconds(params, splits, run)
            begin = time.perf_counter()
            run.close()
            openings.append(opened + time.perf_counter() - begin)
            _wait_for_uploader(run.outbox)
            ratios.append(tracked / _seconds(params, splits, Tracker()))
    ratio, opening = statistics.median(ratios), statistics.median(openings)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return [
        Row("training, tracked over untracked", spread, ratio, f"<= {MOST}", ratio <= MOST),
        Row(
            "opening and closing a run",
            f"{1000 * opening:.0f} ms",
            None,
            f"<= {MOST_OPENING_S:g} s",
            opening <= MOST_OPENING_S,
        ),
    ]


def _seconds(params: Params, splits: Splits, tracker: Tracker) -> float:
    """How long one training takes."""
    options = params.train.model_copy(update={"epochs": EPOCHS, "patience": EPOCHS})
    with tempfile.TemporaryDirectory() as checkpoints:
        begin = time.perf_counter()
        train(params.model, options, splits, device=torch.device("cpu"), checkpoints=Path(checkpoints), tracker=tracker)
        return time.perf_counter() - begin


def _wait_for_uploader(run: RunOutbox) -> None:
    """The untracked training must not run beside the tracked one's uploader."""
    deadline = time.monotonic() + 120
    while not run.is_sent() and time.monotonic() < deadline:
        time.sleep(0.2)
    if (lock := run.hold("uploader", wait=True)) is not None:
        os.close(lock)
    time.sleep(0.5)


@contextmanager
def _private_store() -> Iterator[None]:
    """A tracking store that is nobody's."""
    before = {name: os.environ.get(name) for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["DVC_ROOT"] = folder
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
