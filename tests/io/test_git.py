from pathlib import Path

import pytest

from vaeline.errors import UserError
from vaeline.io.git import git, git_bytes, try_git


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("text\n")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "Start")
    return tmp_path


def test_output_is_text_or_the_exact_bytes(clone: Path):
    assert git(clone, "show", "HEAD:file") == "text"
    assert git_bytes(clone, "show", "HEAD:file") == b"text\n"
    assert git_bytes(clone, "hash-object", "--stdin", stdin=b"text\n").decode().strip() in git(clone, "ls-tree", "HEAD")


def test_the_variables_of_a_hook_do_not_lead_to_another_repository(clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert git(clone, "rev-parse", "--show-toplevel") == str(clone.resolve())


def test_a_failure_is_one_line_of_git_or_none(clone: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(UserError, match=r"^git: not a git repository [^\n]*$"):
        git(tmp_path_factory.mktemp("empty"), "status")
    with pytest.raises(UserError, match=r"^git: .*branch.*\n?$"):
        git(clone, "checkout", "-q", "branch")
    assert try_git(clone, "rev-parse", "--verify", "-q", "none") is None


def test_a_missing_git_and_a_slow_one_are_errors_of_one_line(clone: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"timed out after 0.3 seconds"):
        git_bytes(clone, "-c", "alias.wait=!sleep 2", "wait", timeout=0.3)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^git: is not installed$"):
        git(clone, "status")
