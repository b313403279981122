"""Where files are: a stage's inputs and outputs, and the repository's local state."""

import os
from dataclasses import dataclass
from pathlib import Path

from vaeline.errors import UserError
from vaeline.io.run_context import RunContext


@dataclass(frozen=True)
class Workspace:
    """The folder of a dvc.yaml, and where the local state of its repository lies.

    `root` may be relative: messages then name files as the user knows them. `repository` owns `.vaeline/`: the root,
    or for an experiment's copy the repository that the copy was made of.
    """

    root: Path = Path()
    repository: Path = Path()

    @property
    def params(self) -> Path:
        """params.yaml."""
        return self.root / "params.yaml"

    @property
    def raw(self) -> Path:
        """Output of stage fetch."""
        return self.root / "data/raw"

    @property
    def prepared(self) -> Path:
        """Output of stage prepare."""
        return self.root / "data/prepared"

    @property
    def model(self) -> Path:
        """Output of stage train: weights and config.json."""
        return self.root / "models"

    @property
    def reports(self) -> Path:
        """Outputs of the stages that measure and draw."""
        return self.root / "reports"

    @property
    def state(self) -> Path:
        """`.vaeline/`: tracking store, checkpoints, outbox. Never versioned."""
        return self.repository / ".vaeline"

    def make_state(self) -> Path:
        """`.vaeline/`, made where it is missing. Raises UserError where something else has its name."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{self.state}: must be a folder, found a file or a link to what is not there") from None
        return self.state


def current_workspace() -> Workspace:
    """The workspace that this process was started in; for entry points only, everything else is passed one.

    DVC runs experiments in copies of the repository and names the original in DVC_ROOT: all of them share one
    tracking store. RunContext.root names it for the trials of a sweep, in whose clones DVC_ROOT is the clone. Otherwise
    it is the nearest folder upwards with a `.dvc`, else the current one. Raises UserError where that was deleted.
    """
    if root := RunContext.read().root or os.environ.get("DVC_ROOT"):
        return Workspace(Path(), Path(root))
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted: cd to one that is there") from None
    return Workspace(Path(), next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here))
