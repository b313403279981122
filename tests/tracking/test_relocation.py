"""A repository that was moved or copied uses its own store and its own services, never those of the old folder."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import vaeline
from registry_fixture import NAME, START, FilledRegistry, enter
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry.load import verify
from vaeline.tracking.connection import connect, usable_uri
from vaeline.tracking.relocation import ADDRESSES
from vaeline.tracking.runs import open_training_run
from vaeline.tracking.uploader import sync_all

MOVED = "moved or copied from"


def addresses(repository: Path) -> set[str]:
    """Every address in a repository's store that holds a path."""
    with closing(sqlite3.connect(repository / ".vaeline" / "mlflow.db")) as database:
        columns = [(table, column) for table, named in ADDRESSES.items() for column in named]
        rows = [row for table, column in columns for row in database.execute(f"SELECT {column} FROM {table}")]
    return {address for (address,) in rows if address and "/" in address and not address.startswith("models:")}


def go(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    enter(monkeypatch, repository)


def test_a_copy_beside_the_original_reads_its_own_models(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Mistake 16: the artifacts of a copy are its own."""
    before = addresses(published)
    copy = shutil.copytree(published, tmp_path / "a copy #1")
    go(copy, monkeypatch)
    registry = FilledRegistry(connect(current_workspace()))
    assert caplog.text.count(MOVED) == 1
    assert addresses(published) == before, "the original is as it was"
    there = {a.replace(copy.as_uri(), published.as_uri()).replace(str(copy), str(published)) for a in addresses(copy)}
    assert there == before
    assert verify(f"models:/{NAME}/4")["files"] > 5
    assert registry.weights(4).is_relative_to(copy)
    registry.weights(4).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        vaeline.load(f"models:/{NAME}/4")
    run = registry.client.get_run(registry.client.get_model_version(NAME, "1").run_id)
    new = registry.client.create_run(run.info.experiment_id)
    registry.client.log_text(new.info.run_id, "text", "new.txt")
    assert [*copy.rglob("new.txt")]
    connect(current_workspace())
    assert caplog.text.count(MOVED) == 1, "once is enough"


def test_what_a_moved_repository_had_not_sent_goes_into_its_store(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.move(tmp_path / ".vaeline", old)
    (old / "picture.txt").write_text("file")
    go(old, monkeypatch)
    with open_training_run(current_workspace(), "key", START) as run:
        run.metrics({"train/elbo": -2.0}, 1)
        sync_all(current_workspace())
        run.metrics({"train/elbo": -1.0}, 2)
        run.artifact(old / "picture.txt", "reports")
    old.rename(new)
    go(new, monkeypatch)
    assert "of 1 runs sent" in sync_all(current_workspace())
    client = connect(current_workspace())
    (stored,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [point.value for point in client.get_metric_history(stored.info.run_id, "train/elbo")] == [-2.0, -1.0]
    assert [*new.glob(".vaeline/artifacts/*/artifacts/reports/picture.txt")]
    assert not old.exists()
    assert sync_all(current_workspace()) == "0 events of 0 runs sent"


def test_another_name_of_the_folder_and_a_store_elsewhere_change_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    before, copy = addresses(published), shutil.copytree(published, tmp_path / "copy")
    (tmp_path / "link").symlink_to(published)
    go(tmp_path / "link", monkeypatch)
    usable_uri(current_workspace())
    go(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/.vaeline/mlflow.db")
    usable_uri(current_workspace())
    assert addresses(published) == addresses(copy) == before
    assert MOVED not in caplog.text


@pytest.mark.parametrize("fault", ["left behind", "read only"])
def test_a_copy_without_artifacts_is_refused(
    fault: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(published, tmp_path / "copy")
    go(copy, monkeypatch)
    expected = "its artifacts are in .*, another repository's; copy them too: cp -r '.*' '.*'; or move the database"
    if fault == "left behind":
        shutil.rmtree(copy / ".vaeline" / "artifacts")
    else:
        monkeypatch.setattr("vaeline.tracking.relocation._rewrite", read_only)
        expected = "attempt to write a readonly database; it holds addresses of artifacts in another folder"
    with pytest.raises(UserError, match=expected):
        connect(current_workspace())


def read_only(*_: object) -> None:
    raise sqlite3.OperationalError("attempt to write a readonly database")
