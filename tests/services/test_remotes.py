"""Results shared through a DVC remote: pushed here, pulled in a clone."""

from pathlib import Path

import pytest

from workspaces import execute


def test_a_clone_pulls_what_was_pushed_and_finds_nothing_to_do(toy: Path, tmp_path_factory: pytest.TempPathFactory):
    store, clone = (tmp_path_factory.mktemp(name) for name in ("store", "clone"))
    execute("dvc", "remote", "add", "-q", "-d", "storage", str(store), cwd=toy)
    execute("dvc", "repro", "-q", cwd=toy)
    execute("git", "add", "-A", cwd=toy)
    execute("git", "commit", "-qm", "results", cwd=toy)
    execute("dvc", "push", "-q", cwd=toy)
    execute("git", "clone", "-q", str(toy), str(clone), cwd=toy)
    assert not (clone / "model.txt").exists()
    execute("dvc", "pull", "-q", cwd=clone)
    for name in ("raw.txt", "model.txt", "sample.txt"):
        assert (clone / name).read_bytes() == (toy / name).read_bytes()
    assert "up to date" in execute("dvc", "status", cwd=clone).stdout
    assert "in sync" in execute("dvc", "status", "--cloud", cwd=clone).stdout


def test_a_remote_that_is_away_is_reported_and_loses_nothing(toy: Path, tmp_path: Path):
    execute("dvc", "remote", "add", "-q", "-d", "storage", "ssh://nobody@127.0.0.1:1/nowhere", cwd=toy)
    execute("dvc", "repro", "-q", cwd=toy)
    before = (toy / "model.txt").read_bytes()
    failed = execute("dvc", "push", "-q", cwd=toy, check=False)
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr
    assert (toy / "model.txt").read_bytes() == before
