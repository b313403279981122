"""Clones of a repository, for sweeps and for reproducing models."""

from pathlib import Path

import pytest

from pipeline.services.dvc_command import make_clone
from vaeline.errors import UserError
from vaeline.io.git import git
from workspaces import commit as commit_all
from workspaces import execute


@pytest.fixture
def commit(toy: Path) -> str:
    """The first commit of the toy repository; after it come an uncommitted change and an untracked dvc.lock."""
    (toy / ".gitignore").write_text("/dvc.lock\n")
    commit_all(toy)
    (toy / "seed.txt").write_text("changed")
    (toy / "dvc.lock").write_text("schema: '2.0'\n")
    (toy / ".dvc" / "config.local").write_text("[cache]\ntype = hardlink\n['remote \"a\"']\nurl = /x\n")
    return git(toy, "rev-parse", "HEAD")


@pytest.mark.parametrize("shared", [True, False])
def test_a_clone_that_shares_the_cache_has_dvc_lock_the_changes_and_the_way_of_linking_and_another_its_own(
    toy: Path, commit: str, tmp_path: Path, shared: bool
):
    """Mistake 20."""
    given = {"stash": git(toy, "stash", "create"), "cache": Path("/shared/cache, C#")} if shared else {}
    clone = make_clone(toy, tmp_path / "work" / "clone", commit, **given)
    assert clone == tmp_path / "work" / "clone"
    assert (clone / "dvc.lock").exists() == shared
    assert (clone / "seed.txt").read_text() == ("changed" if shared else "seed")
    written = (clone / ".dvc" / "config.local").read_text()
    assert ("type = hardlink" in written, "remote" in written) == (shared, False)
    place = execute("dvc", "cache", "dir", cwd=clone).stdout.strip()
    assert place == ("/shared/cache, C#" if shared else f"{clone}/.dvc/cache"), "DVC reads it as it is"
    assert not list((clone / ".git" / "objects").glob("[0-9a-f][0-9a-f]")), "objects are shared"


def test_a_shallow_repository_is_cloned_with_its_changes_and_dvc_can_commit_there(
    toy: Path, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shallow = tmp_path / "shallow"
    execute("git", "clone", "-q", "--depth", "1", f"file://{toy}", str(shallow), cwd=tmp_path)
    (shallow / "seed.txt").write_text("changed")
    clone = make_clone(shallow, tmp_path / "clone", commit, stash=git(shallow, "stash", "create"))
    assert (clone / "seed.txt").read_text() == "changed"
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    git(clone, "commit", "-aqm", "as vaeline, where the user has no name")
    assert git(clone, "log", "-1", "--format=%ae") == "vaeline@localhost"


def test_a_project_in_a_subfolder_is_found_and_a_commit_without_one_is_refused(toy: Path, commit: str, tmp_path: Path):
    project = toy / "inner"
    (project / ".dvc").mkdir(parents=True)
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / ".dvc" / "config").write_text("")
    with pytest.raises(UserError, match=rf"^commit {commit} has no inner/dvc\.yaml$"):
        make_clone(project, tmp_path / "clone", commit)
    commit_all(toy)
    assert make_clone(project, tmp_path / "clone", git(toy, "rev-parse", "HEAD")) == tmp_path / "clone" / "inner"
