"""Killed with SIGKILL, several times, in the middle of epochs: the result is the same to the last bit."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from model_sections import described
from preloaded_process import PROCESSES
from small_training import Recorder, bumps, model, options, train_small
from vaeline.serving.model_files import save_model
from vaeline.training.device import Settings
from vaeline.training.history import to_csv
from vaeline.training.splits import Splits

SECTION = options(epochs=30, patience=3, ema=0.7, precision="auto")  # bfloat16 where the processor has it


class KillingTracker(Recorder):
    """Kills its process at a step, or while a checkpoint is being written after it."""

    def __init__(self, at: int, while_writing: bool) -> None:
        super().__init__()
        self.at, self.while_writing = at, while_writing

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step == self.at and self.while_writing:
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # the file is there, unsynced, unnamed
        elif step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_save(folder: Path, at: int, while_writing: bool, every: float) -> None:
    """Train, perhaps be killed, write the outputs; after some epochs of 7 steps the validation bound gets worse."""
    data, settings = Splits(bumps(100, 1), 255 - bumps(30, 2), "none", bumps(100, 1, 10)), Settings(every, log_every=1)
    result = train_small(folder / "c", SECTION, data, tracker=KillingTracker(at, while_writing), settings=settings)
    save_model(folder, result.model, described(model()))
    (folder / "history.csv").write_text(to_csv(result.history))


def run(folder: Path, at: int = 0, while_writing: bool = False, every: float = 0.0) -> int | None:
    """Train in a process of its own; returns its exit code, -9 for SIGKILL."""
    process = PROCESSES.Process(target=train_and_save, args=(folder, at, while_writing, every))
    process.start()
    process.join(120)
    return process.exitcode


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("model.safetensors", "history.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The outputs of a training that ends without a stop, by patience."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, every=1e9) == 0
    rows = (folder / "history.csv").read_text().splitlines()[1:]
    assert len(rows) < SECTION.epochs
    return outputs(folder)


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
    whole: list[bytes], tmp_path: Path, kills: list[int], while_writing: bool, every: float
):
    """Mistake 18: a resumed training that takes its last weights for the best, or forgets how long it has waited."""
    killed = [run(tmp_path, at, while_writing, every) for at in kills]
    assert killed == [-signal.SIGKILL] * len(kills)
    assert not (tmp_path / "history.csv").exists()
    assert run(tmp_path, every=every) == 0
    assert outputs(tmp_path) == whole
