"""Killed at a write, whichever it is, a stage run again comes to the same bytes and the same MLflow run."""

import os
import random
import shutil
import time
from collections import Counter

import pytest

from crash_workspaces import STAGES, StageStates, assert_same, changes, check_at, number_of


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
