"""What `vaeline doctor` finds, and that it names a fix."""

import io
import os
import shutil
import socket
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from unittest.mock import ANY

import pytest

from command_line import vaeline
from pipeline.commands import doctor
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import execute

pytestmark = pytest.mark.usefixtures("toy")
CHECKS = ("python", "git", "dvc", "params", "data", "tracking", "prefect", "device", "disk")


@pytest.fixture
def here(toy: Path) -> Workspace:
    return Workspace(Path(), toy)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_sound_workspace_has_one_line_a_check_and_no_failure():
    lines = vaeline("doctor", VAELINE_DEVICE="cpu").splitlines()
    assert [line[6:14].strip() for line in lines] == list(CHECKS)
    assert {line[:4].strip() for line in lines} <= {"ok", "warn"}


def test_each_failure_is_one_line_with_a_fix_and_the_exit_code_is_one(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Mistake 21: a failed check, a server that is away, a failed command of a check, that change nothing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    replace(here.params, "epochs: ", "epoch: ")
    (here.repository / "dvc.lock").write_text("schema: '2.0'\nstages:\n  fetch:\n    cmd: [")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
    servers = {"MLFLOW_TRACKING_URI": address, "PREFECT_API_URL": f"{address}/api"}
    lines = vaeline("doctor", code=1, VAELINE_DEVICE="cuda", **servers).splitlines()
    found = {line[6:14].strip(): line for line in lines}
    assert list(found) == list(CHECKS), "one failure does not hide the rest"
    assert found["params"].startswith("fail  params    params.yaml: ")
    assert "train.warmup_epoch: unknown key" in found["params"]
    assert found["dvc"].startswith("fail  dvc       dvc status: ")
    assert found["dvc"].endswith("; fix: git checkout .dvc dvc.yaml dvc.lock")
    for name in ("tracking", "prefect"):
        assert found[name].startswith("fail")
        assert "; fix: start that server, or unset" in found[name]
        assert "secret" not in found[name]
    assert found["device"].startswith("fail  device    VAELINE_DEVICE: is 'cuda'")
    assert found["disk"][:4] in ("ok  ", "warn")


def test_an_address_or_profile_that_is_not_prefects_is_named(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    answers = {"http://host/api/health": b"true", "http://other/api/health": b"<html>"}
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(answers[address]))
    for api, found in (("http://host/api", ("ok", "http://host/api answers")), ("http://other/api", ("fail", ANY))):
        os.environ["PREFECT_API_URL"] = api
        assert doctor.prefect(here) == found
    os.environ |= {"PREFECT_PROFILE": "unknown", "VAELINE_DATA_DIR": "a" * 5000}
    replace(here.params, "kind: digits", "kind: mnist")
    lines = vaeline("doctor", code=1).splitlines()
    for start in ("prefect   PREFECT_PROFILE: found 'unknown', allowed: ", "data      [Errno 36] File name too long: "):
        assert [line for line in lines if line.startswith(f"fail  {start}")]
    assert len(lines) == len(CHECKS), "one failure does not hide the rest"


def test_an_empty_folder_of_the_run_cache_and_a_cache_that_dvc_cannot_name_are_found(here: Workspace):
    """Mistake 21: what makes `dvc repro` fail ever after, and the exit code of `dvc cache dir`."""
    (here.repository / ".dvc" / "cache" / "runs" / "ab" / "abcd").mkdir(parents=True)
    level, found = doctor.dvc(here)
    assert level == "fail"
    execute("sh", "-c", found.partition("; fix: ")[2], cwd=here.repository)
    assert doctor.dvc(here)[0] == "ok"
    (here.repository / ".dvc" / "config").write_text("[cach")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.services.dvc_command.stale_stages", lambda *_, **__: set())
        with pytest.raises(UserError, match=r"^dvc cache dir: .*; correct DVC's settings: .dvc/config$"):
            doctor.dvc(here)


def test_another_python_no_git_and_a_repository_that_git_does_not_trust_are_found(
    here: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    level, found = doctor.git(Workspace(tmp_path_factory.mktemp("empty")))
    assert (level, "\n" in found, "git clone" in found) == ("fail", False, True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    level, found = doctor.git(here)
    assert level == "fail"
    assert "detected dubious ownership" in found
    assert found.endswith(f"; fix: git config --global --add safe.directory {here.repository}")
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.python(here)[0] == "warn"


def test_data_that_are_missing_are_found_and_fetched_ones_need_no_network(
    here: Workspace, monkeypatch: pytest.MonkeyPatch
):
    replace(here.params, "kind: digits", "kind: folder\n    path: pictures")
    assert doctor.data(here)[0] == "fail"
    Path("pictures").mkdir()
    assert doctor.data(here)[0] == "ok"
    replace(here.params, "kind: folder\n    path: pictures", "kind: mnist")
    monkeypatch.setenv("VAELINE_DATA_DIR", "nowhere")
    assert doctor.data(here)[0] == "fail"
    here.raw.mkdir(parents=True)
    for name in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1"):
        (here.raw / f"{name}-ubyte").write_bytes(b"")
    assert doctor.data(here) == ("ok", "mnist: already in data/raw")


def test_a_damaged_tracking_store_and_too_little_space_are_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Mistake 21: a damaged store; GB that are MB."""
    assert doctor.tracking(here)[0] == "ok"
    here.state.mkdir()
    with closing(sqlite3.connect(here.state / "mlflow.db")) as database:
        database.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    content = (here.state / "mlflow.db").read_bytes()
    (here.state / "mlflow.db").write_bytes(content[:4096] + b"x" * len(content[4096:]))
    level, found = doctor.tracking(here)
    assert level == "fail"
    assert "restore it from a backup" in found
    usage = namedtuple("usage", "total used free")
    for free, expected in ((12_340_000_000, "ok"), (4_000_000_000, "warn"), (900_000_000, "fail")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage(10**13, 0, free))
        level, found = doctor.disk(here)
        assert (level, found[:24]) == (expected, f"{free / 10**9:.1f} GB free at {here.repository}"[:24])


def test_a_copied_store_is_made_to_use_its_own_files(here: Workspace, published: Path):
    shutil.copytree(published / ".vaeline", here.state)
    assert doctor.tracking(here)[0] == "ok"
    assert here.state.absolute().as_uri().encode() in (here.state / "mlflow.db").read_bytes()
    shutil.rmtree(here.state)
    here.state.mkdir()
    shutil.copy(published / ".vaeline/mlflow.db", here.state)
    with pytest.raises(UserError, match=r"its artifacts are in .*, another repository's; copy them too: cp -r "):
        doctor.tracking(here)
