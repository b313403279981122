"""Killed at a write, whichever it is, a stage run again comes to the same bytes and the same MLflow run."""

import re
import shutil
from collections.abc import Iterable

import pytest
from farm import STAGES, TRACKED, Farm, Workspace

# a kill between two of these finds on the disk what a kill at one of them finds
CHANGES = re.compile(r"create|half write|replace|after|rename|unlink|rmdir|open|half copy")
ALIKE = re.compile(r"(open|half copy|after mkdir) .vaeline/artifacts/.*/models/")  # hundreds of files of one upload
EACH = 15


def changes(points: Iterable[str]) -> list[int]:
    """The numbers of the points with a disk of their own; of an upload's many files every few."""
    found = [number for number, point in enumerate(points) if CHANGES.match(point)]
    alike = [number for number in found if ALIKE.match(list(points)[number])]
    return sorted(set(found) - set(alike) | set(alike[::EACH]))


def assert_recovers(farm: Farm, stage: str, at: int) -> None:
    """Kill, run again (at every other point with the outputs removed, as DVC does), compare everything."""
    trial = farm.trial(stage)
    assert trial.run(stage, "kill", at).code == -9
    if at % 2:
        trial.clear(stage)
    trial.well(stage)
    assert_same(farm, trial, stage)
    shutil.rmtree(trial.folder)


def assert_same(farm: Farm, trial: Workspace, stage: str) -> None:
    """Outputs, and what MLflow shows, as if nothing had happened."""
    assert trial.outputs(stage) == farm.outputs[stage]
    assert trial.leftovers() == []
    if stage in TRACKED:
        assert trial.tracked() == farm.store[stage]


def failures(points: Iterable[int], check: "object") -> list[str]:
    """What went wrong at which points."""
    found = []
    for at in points:
        try:
            check(at)  # type: ignore[operator]
        except AssertionError as error:
            found.append(f"{at}: {str(error)[:2000]}")
    return found


@pytest.fixture(scope="module")
def grown(farm: Farm) -> Farm:
    farm.grow(("fetch", "prepare", "train"))
    return farm


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
    at = next(n for n, name in enumerate(grown.points[stage]) if re.match(point, name))
    assert_recovers(grown, stage, at)


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


@pytest.fixture(scope="module")
def whole(farm: Farm) -> Farm:
    farm.grow()
    return farm
