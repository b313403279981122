"""Where files are, and what a parent process passes on: one environment variable, VAELINE_RUN_CONTEXT, in JSON."""

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json, shown

VARIABLE = "VAELINE_RUN_CONTEXT"


@dataclass(frozen=True)
class RunContext:
    """The context in which a process was started; None: not part of it."""

    root: str | None = None  # repository that owns the local state, where DVC_ROOT is a trial's clone
    workspace: str | None = None  # folder in which a worker's flow runs work
    run: str | None = None  # process id of the run that holds the workspace lock
    flow_run: str | None = None  # Prefect's id
    sweep: str | None = None  # name of the sweep that a trial belongs to
    experiment: str | None = None  # MLflow experiment of its runs; else register.name
    parent_run: str | None = None  # id of the sweep's MLflow run
    uploader_path: str | None = None  # PYTHONPATH of the uploader, which outlives a trial's clone
    service: str | None = None  # which service of `vaeline up` started this process

    @classmethod
    def read(cls) -> "RunContext":
        """The context of this process. Raises UserError where the variable does not hold one."""
        text = os.environ.get(VARIABLE) or "{}"
        try:
            content: Any = parse_json(text.encode(), VARIABLE)
            if all(isinstance(value, str) for value in content.values()):
                return cls(**content)
        except (UserError, TypeError, AttributeError):
            pass
        keys = ", ".join(field.name for field in fields(cls))
        raise UserError(f"{VARIABLE}: found {text[:200]!r}, allowed: a JSON object of strings, with keys out of {keys}")

    def environment(self, **changes: str | None) -> dict[str, str]:
        """The variable that gives children this context with changes."""
        content = asdict(replace(self, **changes))
        return {VARIABLE: json.dumps({name: value for name, value in content.items() if value is not None})}


@dataclass(frozen=True)
class Workspace:
    """The folder of a dvc.yaml, and where the local state of its repository lies.

    `root` may be relative: messages then name files as the user knows them. `repository` owns `.vaeline/`: the root, or
    the repository that an experiment's copy was made of.
    """

    root: Path = Path()
    repository: Path = Path()

    params = cached_property[Path](lambda self: self.root / "params.yaml")
    raw = cached_property[Path](lambda self: self.root / "data/raw")  # output of stage fetch
    init = cached_property[Path](lambda self: self.root / "data/init")  # output of stage fetch
    prepared = cached_property[Path](lambda self: self.root / "data/prepared")  # output of stage prepare
    model = cached_property[Path](lambda self: self.root / "models")  # output of stage train: weights, config.json
    reports = cached_property[Path](lambda self: self.root / "reports")  # of the stages that measure and draw
    # never versioned: tracking store, checkpoints, outbox
    state = cached_property[Path](lambda self: self.repository / ".vaeline")

    def make_state(self) -> Path:
        """`.vaeline/`, made where it is missing. Raises UserError where something else has its name."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{self.state}: must be a folder, found a file or a link to what is not there") from None
        return self.state


def expanded(path: str, named: str) -> Path:
    """The path with the user's home for ~. Raises UserError, which begins with `named`, where none can be so."""
    if "\0" in path:
        raise UserError(f"{named}: {shown(path)}: holds a null character; allowed: a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{named}: {shown(path)}: there is no such user; allowed: a file or folder") from None


def current_folder() -> Path:
    """The current folder. Raises UserError where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted: cd to one that is there") from None


def current_workspace() -> Workspace:
    """The workspace that this process was started in; for entry points only, everything else is passed one.

    The repository is RunContext.root in the clones of a sweep's trials, DVC_ROOT in DVC's copies for experiments: all
    share one tracking store. Else it is the nearest folder upwards with a `.dvc`, or the current one.
    Raises UserError where that was deleted.
    """
    if root := RunContext.read().root or os.environ.get("DVC_ROOT"):
        return Workspace(Path(), Path(root))
    here = current_folder()
    return Workspace(Path(), next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here))
