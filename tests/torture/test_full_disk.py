"""A disk that is full from some write on: one clear line, nothing of before is lost, and with room it goes on."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from crash_workspaces import (
    ALIKE,
    STAGES,
    TRACKED,
    CrashWorkspace,
    StageStates,
    assert_old_or_new,
    assert_same,
    check_at,
    number_of,
    put_old_outputs,
)

ROOM = re.compile(r"create|half write|open|mkdir|fsync|commit|half copy")
EVERY = {"theory": 4, "register": 12}


def assert_survives(states: StageStates, stage: str, at: int) -> None:
    """Full from a point on, then with room."""
    trial = states.trial(stage)
    put_old_outputs(states, trial, stage)
    done = trial.run(stage, "full", at)
    assert_one_line(done.code, done.said)
    assert_old_or_new(states, trial, stage)
    assert trial.leftovers() == []
    if done.code == 0:
        assert trial.outputs(stage) == states.outputs[stage]
    trial.run_ok(stage)
    if done.code == 1:
        assert_same(states, trial, stage)
    else:  # what was not reported stays missing
        assert trial.outputs(stage) == states.outputs[stage]
        if stage in TRACKED:
            assert_nothing_twice(trial)
    shutil.rmtree(trial.folder)


def assert_one_line(code: int, said: str) -> None:
    """Exit 1 and one line; or, where only tracking had no room, one warning."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    warnings = [line for line in said.splitlines() if line.startswith("tracking stops")]
    assert "Traceback" not in said, said
    assert code in (0, 1), said
    assert len(errors) == code, said
    assert all("is full" in line for line in errors), said
    assert len(warnings) <= 1, said


def assert_nothing_twice(trial: CrashWorkspace) -> None:
    store = trial.tracked()
    assert len(store["runs"]) <= 1, store
    for run in store["runs"]:
        for name, points in run["points"].items():
            assert len({step for step, _ in points}) == len(points), name


@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("fetch", r"half write data/.raw.new/images.npy"),
        ("prepare", r"fsync data/.prepared.new/manifest.json"),
        ("train", r"create .*/outbox.db"),
        ("train", r"half write .*step-0{11}3"),
        ("train", r"half write models/.config.json.*.part"),
        ("train", r"commit .*/outbox.db"),
    ],
)
def test_with_no_room_a_stage_says_so_and_keeps_what_was_there(trained: StageStates, stage: str, point: str):
    assert_survives(trained, stage, number_of(trained.points[stage], point))


def test_with_no_room_for_tracking_alone_training_goes_on(trained: StageStates):
    trial = trained.trial("train")
    done = trial.run("train", "full", 0, within=".vaeline/outbox")
    assert_one_line(done.code, done.said)
    assert done.code == 0
    assert trial.outputs("train") == trained.outputs["train"]


@pytest.mark.torture
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("stage", STAGES)
def test_with_no_room_at_any_write_a_stage_keeps_what_was_there(full: StageStates, stage: str):
    names = full.points[stage]
    points = [n for n, name in enumerate(names) if ROOM.match(name) and not ALIKE.match(name)]
    check_at(f"{stage}, no room", names, points[:: EVERY.get(stage, 1)], lambda at: assert_survives(full, stage, at))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Another file system, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.torture
@pytest.mark.parametrize("stage", [name for name in STAGES if name != "register"])
def test_on_a_file_system_that_is_full_too(full: StageStates, stage: str, small_disk: Path):
    trial = full.trial(stage).copy(small_disk / "work")
    put_old_outputs(full, trial, stage)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    done = trial.run(stage)
    assert_one_line(done.code, done.said) if done.code else None
    assert_old_or_new(full, trial, stage)
    filler.unlink()
    trial.run_ok(stage)
    assert trial.outputs(stage) == full.outputs[stage]
    assert trial.leftovers() == []
