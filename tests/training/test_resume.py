"""Killed with SIGKILL, several times, in the middle of epochs: the result is the same to the last bit."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from small_training import Recorder, bumps, model, options, splits, train_small
from vaeline import config
from vaeline.serving.model_files import save_model
from vaeline.training.history import to_csv
from vaeline.training.settings import Settings
from vaeline.training.splits import Splits

EPOCHS = options(epochs=4)  # of 7 steps each
PROCESSES = multiprocessing.get_context("forkserver")  # real processes, that need not import torch again each
PROCESSES.set_forkserver_preload(["vaeline.training.trainer"])


class KillingTracker(Recorder):
    """Kills its process at a step, or while a checkpoint is being written after it."""

    def __init__(self, at: int | None, while_writing: bool) -> None:
        super().__init__()
        self.at, self.while_writing = at, while_writing

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step != self.at:
            return
        if not self.while_writing:
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # the file is there, unsynced, unnamed


@dataclass(frozen=True)
class Job:
    """What a process does: train, perhaps be killed, write the outputs."""

    folder: Path
    at: int | None = None
    while_writing: bool = False
    every: float = 0.0
    data: Splits = field(default_factory=splits)
    section: config.Train = EPOCHS

    def __call__(self) -> None:
        settings = Settings(checkpoint_seconds=self.every, log_every=1)
        tracker = KillingTracker(self.at, self.while_writing)
        folder = self.folder / "checkpoints"
        result = train_small(folder, self.section, self.data, tracker=tracker, settings=settings)
        data = {"digest": "0", "source": "bumps", "binarise": self.data.binarise}
        params = model().model_dump(mode="json")
        save_model(self.folder, result.model, {"model": params, "objective": self.section.objective, "data": data})
        (self.folder / "history.csv").write_text(to_csv(result.history))


def run(folder: Path, **job: Any) -> int:
    """Do a job in a process of its own; returns its exit code, -9 for SIGKILL."""
    process = PROCESSES.Process(target=Job(folder, **job))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("model.safetensors", "history.csv")]


@pytest.mark.parametrize(
    ("kills", "while_writing", "every"),
    [
        ([3, 14, 25], False, 0.0),  # in the middle and at the end of epochs, a checkpoint each step
        ([5, 20], True, 0.0),  # while a checkpoint is half-written
        ([6, 27], False, 0.02),  # some steps are done again
    ],
    ids=["between-steps", "while-writing", "steps-lost"],
)
def test_a_killed_training_goes_on_to_the_same_bytes(
    tmp_path: Path, kills: list[int], while_writing: bool, every: float
):
    assert run(tmp_path / "whole", every=1e9) == 0
    killed = [run(tmp_path / "killed", at=at, while_writing=while_writing, every=every) for at in kills]
    assert killed == [-signal.SIGKILL] * len(kills)
    assert not (tmp_path / "killed" / "history.csv").exists()
    assert run(tmp_path / "killed", every=every) == 0
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def test_patience_and_best_weights_survive_a_kill(tmp_path: Path):
    """Mistake 18: a resumed training that takes its last weights for the best."""
    data = Splits(bumps(100, seed=1), 255 - bumps(30, seed=2), "none")  # gets worse after some epochs
    more = {"data": data, "section": options(epochs=30, patience=3)}
    assert run(tmp_path / "whole", every=1e9, **more) == 0
    rows = (tmp_path / "whole" / "history.csv").read_text().splitlines()[1:]
    assert len(rows) < 30
    assert run(tmp_path / "killed", at=7 * len(rows) - 3, **more) == -signal.SIGKILL
    assert run(tmp_path / "killed", **more) == 0
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
