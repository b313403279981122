"""The working tree that every trial of a sweep starts from."""

from dataclasses import dataclass
from typing import Any

from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.git import git, try_git
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import read_yaml


@dataclass(frozen=True)
class Baseline:
    """A commit, and the uncommitted changes of tracked files as a stash commit."""

    commit: str
    stash: str  # empty where there are none
    changes: str  # digest of the changes: the id of a stash commit depends on the time too
    params: Any  # the content of params.yaml

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two baselines the same."""
        return {"commit": self.commit, "changes": self.changes, "params": self.params}


def read_baseline(workspace: Workspace) -> Baseline:
    """The working tree as it is now, which stays as it is. Raises UserError where there is no commit."""
    root = workspace.root
    git(root, "rev-parse", "--git-dir")  # Git's own error where there is no repository, or another user's
    commit = try_git(root, "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        raise UserError("git: no commit here; experiments need one: git add -A && git commit -m start")
    workspace.state.mkdir(parents=True, exist_ok=True)
    with locked(workspace.state / "baseline.lock"):  # Git locks its index, and does not wait for another's lock
        options = ("--binary", "--no-color", "--no-ext-diff")
        diff = git(root, "diff", "HEAD", *options, "--", ":/", ":(exclude)dvc.lock")
        stash = git(root, "stash", "create", "vaeline sweep")
    return Baseline(commit, stash, value_digest({"diff": diff}) if diff else "", read_yaml(workspace.params))
