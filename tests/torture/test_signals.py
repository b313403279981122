"""Ctrl-C or SIGTERM at a write: exit code 130 or 143, no traceback, nothing half-written, and the next run goes on."""

import shutil

import pytest

from crash_workspaces import (
    STAGES,
    StageStates,
    assert_old_or_new,
    assert_same,
    changes,
    check_at,
    number_of,
    put_old_outputs,
)

CODES = {"int": 130, "term": 143}
EVERY = {"train": 2, "theory": 5, "register": 12}


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
    points = changes(names)[:: EVERY.get(stage, 1)]
    check_at(f"{stage}, SIG{action.upper()}", names, points, lambda at: assert_stops(full, stage, action, at))
