"""Where files are: a stage's inputs and outputs, and the repository's local state."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vaeline.errors import UserError
from vaeline.io.run_context import RunContext


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


def current_workspace() -> Workspace:
    """The workspace that this process was started in; for entry points only, everything else is passed one.

    The repository is RunContext.root in the clones of a sweep's trials, DVC_ROOT in DVC's copies for experiments: all
    share one tracking store. Else it is the nearest folder upwards with a `.dvc`, or the current one.
    Raises UserError where that was deleted.
    """
    if root := RunContext.read().root or os.environ.get("DVC_ROOT"):
        return Workspace(Path(), Path(root))
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted: cd to one that is there") from None
    return Workspace(Path(), next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here))
