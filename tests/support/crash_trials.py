"""What the tests of crashes, full disks and signals share: which points, and what must be the same."""

import re
from collections.abc import Callable, Iterable, Sequence

from crash_workspaces import OUTPUTS, TRACKED, CrashWorkspace, StageStates

# a kill between two of these finds on the disk what a kill at one of them finds
CHANGES = re.compile(r"create|half write|replace|after|rename|unlink|rmdir|open|half copy")
ALIKE = re.compile(r"(open|half copy|after mkdir) .vaeline/artifacts/(.*/)?models/")  # hundreds of files of one upload
EACH = 15


def changes(points: Sequence[str]) -> list[int]:
    """The numbers of the points with a disk of their own; of an upload's many files every few."""
    found = [number for number, point in enumerate(points) if CHANGES.match(point)]
    alike = [number for number in found if ALIKE.match(points[number])]
    return sorted(set(found) - set(alike) | set(alike[::EACH]))


def assert_same(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Outputs, and what MLflow shows, as if nothing had happened."""
    assert trial.outputs(stage) == states.outputs[stage]
    assert trial.leftovers() == []
    if stage in TRACKED:
        assert trial.tracked() == states.store[stage]


def check_at(what: str, names: Sequence[str], points: Iterable[int], check: Callable[[int], None]) -> None:
    """Check at all these points, then fail with the names of those at which it failed."""
    bad, count = [], 0
    for at in points:
        count += 1
        try:
            check(at)
        except AssertionError as error:
            bad.append(f"{names[at]}: {str(error)[:2000]}")
    print(f"\n{what}: at {count} of {len(names)} points, {len(bad)} not as they should be")
    assert not bad, "\n".join(bad)


def number_of(points: Sequence[str], pattern: str) -> int:
    """The first point that is called so."""
    return next(number for number, name in enumerate(points) if re.match(pattern, name))


def put_old_outputs(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Outputs of before, to be kept or replaced."""
    for name in states.outputs[stage]:
        path = trial.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")


def assert_old_or_new(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Each output, a file or a folder, is wholly of before or wholly new."""
    found = trial.outputs(stage)
    assert found.keys() == states.outputs[stage].keys()
    for output in OUTPUTS[stage]:
        files = [name for name in found if name == output or name.startswith(f"{output}/")]
        now, new = ({name: source[name] for name in files} for source in (found, states.outputs[stage]))
        assert now in (new, dict.fromkeys(files, b"old")), f"{output} is a mixture"
