from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.sweep.baseline import read_baseline
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


def test_a_baseline_is_the_commit_with_the_changes_read_by_many_at_the_same_moment(repository: Path):
    here = Workspace(Path(), repository)
    (repository / "dvc.lock").write_text("schema: '2.0'\n")  # what DVC writes is no change
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_baseline(here), range(8)))
    assert len({str(baseline.identity) for baseline in found}) == 1
    assert found[0].stash
    (repository / "seed.txt").write_text("a third seed")
    assert read_baseline(here).identity != found[0].identity
    (repository / "seed.txt").write_text("seed")
    assert read_baseline(here).stash == ""


def test_a_repository_of_another_user_is_refused_in_gits_words(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"^git: detected dubious ownership in repository at '.*'$"):
        read_baseline(Workspace(Path(), repository))
