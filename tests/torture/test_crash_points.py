"""Killed at a write, whichever it is, a stage run again comes to the same bytes and the same MLflow run."""

import shutil

import pytest
from farm import STAGES, Farm
from trials import assert_same, changes, failures, number_of


def assert_recovers(farm: Farm, stage: str, at: int) -> None:
    """Kill, run again (at every other point with the outputs removed, as DVC does), compare everything."""
    trial = farm.trial(stage)
    assert trial.run(stage, "kill", at).code == -9
    if at % 2:
        trial.clear(stage)
    trial.well(stage)
    assert_same(farm, trial, stage)
    shutil.rmtree(trial.folder)


@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("fetch", r"half write data/.raw.new/images.npy"),
        ("fetch", r"after rename"),
        ("prepare", r"half write data/.prepared.new/manifest.json"),
        ("train", r"create .*/events.jsonl"),
        ("train", r"half write .*/events.jsonl"),
        ("train", r"after replace .*step-0{11}1"),
        ("train", r"half write .*step-0{11}3"),
        ("train", r"after replace models/.model.safetensors.part"),
        ("train", r"after replace .*/.model.part"),
    ],
)
def test_a_stage_killed_at_a_write_goes_on_to_the_same_bytes_and_run(grown: Farm, stage: str, point: str):
    assert_recovers(grown, stage, number_of(grown.points[stage], point))


@pytest.mark.torture
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_write_goes_on_to_the_same_bytes_and_run(whole: Farm, stage: str):
    points = changes(whole.points[stage])
    bad = failures(points, lambda at: assert_recovers(whole, stage, at))
    print(f"\n{stage}: killed at {len(points)} of {len(whole.points[stage])} points, {len(bad)} not as uncrashed")
    assert not bad, "\n".join(f"{whole.points[stage][int(b.split(':')[0])]}: {b}" for b in bad)


@pytest.mark.torture
@pytest.mark.timeout(14400)
def test_sync_killed_at_any_write_sends_each_point_once(whole: Farm):
    def check(at: int) -> None:
        trial = whole.trial("theory")
        assert trial.run("sync", "kill", at).code == -9
        assert trial.tracked() == whole.store["sample"]
        shutil.rmtree(trial.folder)

    trial = whole.trial("theory")
    counted = trial.well("sync").points
    points = changes(counted)
    bad = failures(points, check)
    print(f"\nsync: killed at {len(points)} of {len(counted)} points, {len(bad)} not as uncrashed")
    assert not bad, "\n".join(f"{counted[int(b.split(':')[0])]}: {b}" for b in bad)
