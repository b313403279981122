"""Which stages of dvc.yaml need which, and which a change would run."""

from collections.abc import Iterable

from pipeline.services.dvc_command import always_stale, outputs, read_stages, stale_stages
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


def needed_stages(workspace: Workspace, only: str = "") -> dict[str, set[str]]:
    """The stages in the order of dvc.yaml, each with itself and all those that it needs; of `only`, just these.

    Raises UserError where there is no such stage.
    """
    stages, found = read_stages(workspace), dict[str, set[str]]()
    if only and only not in stages:
        raise UserError(f"--only: found {only!r}, allowed: {', '.join(stages)}")
    for name, stage in stages.items():  # each comes after what it reads
        before = [other for other in found if _overlap(stage.get("deps", []), outputs(stages[other]), "/")]
        found[name] = {name}.union(*(found[other] for other in before))
    return {name: needs for name, needs in found.items() if not only or name in found[only]}


def stages_to_run(workspace: Workspace, only: str, force: bool, changed: Iterable[str] = ()) -> list[str]:
    """The stages, at most those that `only` needs, that would run after a change of the key paths `changed`."""
    stages, needs = read_stages(workspace), needed_stages(workspace, only)
    stale = set(stages) if force else stale_stages(workspace) | always_stale(workspace)
    stale |= {name for name, stage in stages.items() if _overlap(stage.get("params", []), changed, ".")}
    return [name for name in needs if needs[name] & stale]


def _overlap(paths: Iterable[str], others: Iterable[str], separator: str) -> bool:
    """Whether one of the paths is, contains or lies in one of the others."""
    ends = [(f"{path}{separator}", f"{other}{separator}") for path in paths for other in others]
    return any(a.startswith(b) or b.startswith(a) for a, b in ends)
