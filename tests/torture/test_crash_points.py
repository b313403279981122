"""A kill, a full disk or a signal at a write, whichever it is.

Killed, a stage run again comes to the same bytes and the same MLflow run. A disk without room is one clear line,
nothing of before is lost, and with room it goes on. Ctrl-C and SIGTERM are exit code 130 and 143 without a traceback.
"""

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
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
    changes,
    check_at,
    number_of,
    put_old_outputs,
)

ROOM = re.compile(r"create|half write|open|mkdir|fsync|commit|half copy")
CODES = {"int": 130, "term": 143}


def assert_recovers(states: StageStates, stage: str, at: int) -> None:
    """Kill, run again (at every other point with the outputs removed, as DVC does), compare everything."""
    trial = states.trial(stage)
    assert trial.run(stage, "kill", at).code == -9
    if at % 2:
        trial.clear(stage)
    trial.run_ok(stage)
    assert_same(states, trial, stage)
    shutil.rmtree(trial.folder)


@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("fetch", r"half write data/.raw.new/images.npy"),
        ("fetch", r"after rename"),
        ("prepare", r"half write data/.prepared.new/manifest.json"),
        ("train", r"create .*/outbox.db"),
        ("train", r"half write .*/outbox.db"),
        ("train", r"after replace .*step-0{11}1"),
        ("train", r"half write .*step-0{11}3"),
        ("train", r"after replace models/.model.safetensors.*.part"),
        ("train", r"after commit .*/outbox.db"),
    ],
)
def test_a_stage_killed_at_a_write_goes_on_to_the_same_bytes_and_run(trained: StageStates, stage: str, point: str):
    assert_recovers(trained, stage, number_of(trained.points[stage], point))


@pytest.mark.torture
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_write_goes_on_to_the_same_bytes_and_run(full: StageStates, stage: str):
    names = full.points[stage]
    check_at(f"{stage} killed", names, changes(names), lambda at: assert_recovers(full, stage, at))


@pytest.mark.torture
@pytest.mark.timeout(14400)
def test_sync_killed_at_any_write_sends_each_point_once(full: StageStates):
    def check(at: int) -> None:
        trial = full.trial("theory")
        assert trial.run("sync", "kill", at).code == -9
        assert trial.tracked() == full.store["sample"]
        shutil.rmtree(trial.folder)

    names = full.trial("theory").run_ok("sync").points
    check_at("sync killed", names, changes(names), check)


@pytest.mark.torture
@pytest.mark.timeout(14400)
def test_a_stage_killed_at_random_moments_goes_on_to_the_same_bytes_and_run(full: StageStates):
    seed = int(os.environ.get("TORTURE_SEED", str(time.time_ns() % 1_000_000)))
    rng, ends, bad = random.Random(seed), Counter[int](), []
    for number in range(50):
        stage = rng.choice([name for name in STAGES if name != "register"] + ["train"] * 3)
        trial = full.trial(stage)
        begin = time.monotonic()
        trial.run_ok(stage)
        seconds = time.monotonic() - begin
        shutil.rmtree(trial.folder)
        trial = full.trial(stage)
        for _ in range(rng.randint(1, 3)):
            ends[trial.run(stage, after=rng.uniform(0, seconds)).code] += 1
            trial.clear(stage)
        trial.run_ok(stage)
        try:
            assert_same(full, trial, stage)
        except AssertionError as error:
            bad.append(f"{number} {stage}: {error}")
        shutil.rmtree(trial.folder)
    print(f"\nseed {seed}: 50 trials, {ends[-9]} kills at random moments, {len(bad)} not as unkilled")
    assert not bad, bad


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
    points = points[:: {"theory": 4, "register": 12}.get(stage, 1)]
    check_at(f"{stage}, no room", names, points, lambda at: assert_survives(full, stage, at))


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


def assert_stops(states: StageStates, stage: str, action: str, at: int) -> None:
    """A signal at a point, then again without."""
    trial = states.trial(stage)
    put_old_outputs(states, trial, stage)
    done = trial.run(stage, action, at)
    # only where the point was not reached may it end well: with outputs of before, some folders are not made
    missed = done.code == 0 and len(done.points) <= at
    assert missed or done.code == CODES[action], f"{done.code}: {done.said}"
    assert "Traceback" not in done.said, done.said
    assert "Exception ignored" not in done.said, done.said
    assert_old_or_new(states, trial, stage)
    trial.run_ok(stage)
    assert_same(states, trial, stage)
    shutil.rmtree(trial.folder)


@pytest.mark.parametrize(
    ("stage", "point", "action"),
    [
        ("prepare", r"after rename", "term"),
        ("train", r"half write .*step-0{11}6", "int"),
        ("train", r"replace models/.model.safetensors.*.part", "term"),
    ],
)
def test_a_signal_ends_a_stage_cleanly(trained: StageStates, stage: str, point: str, action: str):
    assert_stops(trained, stage, action, number_of(trained.points[stage], point))


@pytest.mark.torture
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("action", ["int", "term"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_at_any_write_ends_a_stage_cleanly(full: StageStates, stage: str, action: str):
    names = full.points[stage]
    points = changes(names)[:: {"train": 2, "theory": 5, "register": 12}.get(stage, 1)]
    check_at(f"{stage}, SIG{action.upper()}", names, points, lambda at: assert_stops(full, stage, action, at))
