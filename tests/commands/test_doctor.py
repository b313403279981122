"""What `vaeline doctor` finds, and that it names a fix."""

import os
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from command_line import vaeline
from pipeline.commands import doctor
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


def test_each_failure_is_one_line_with_a_fix_and_the_exit_code_is_one(here: Workspace):
    """Mistake 21: a failed check, or a failed command of a check, that changes nothing."""
    replace(here.params, "epochs: ", "epoch: ")
    (here.repository / "dvc.lock").write_text("schema: '2.0'\nstages:\n  fetch:\n    cmd: [")
    lines = vaeline("doctor", code=1, VAELINE_DEVICE="cpu").splitlines()
    found = {line[6:14].strip(): line for line in lines}
    assert list(found) == list(CHECKS), "one failure does not hide the rest"
    assert found["params"].startswith("fail  params    params.yaml: ")
    assert "train.epoch: unknown key" in found["params"]
    assert found["dvc"].startswith("fail  dvc       dvc status: ")
    assert found["dvc"].endswith("; fix: git checkout .dvc dvc.yaml dvc.lock")
    assert found["disk"][:4] in ("ok  ", "warn")


def test_a_cache_that_dvc_cannot_name_is_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Mistake 21: the exit code of `dvc cache dir` is looked at."""
    monkeypatch.setattr("pipeline.services.dvc_command.stale_stages", lambda *_, **__: set())
    (here.repository / ".dvc" / "config").write_text("[cach")
    finding = doctor.dvc(here)
    assert finding.level == "fail"
    assert finding.found.startswith("dvc cache dir: ")


def test_a_folder_without_git_is_found(tmp_path_factory: pytest.TempPathFactory):
    finding = doctor.git(Workspace(tmp_path_factory.mktemp("empty")))
    assert (finding.level, str(finding).count("\n")) == ("fail", 0)
    assert "git clone" in finding.fix


def test_a_repository_that_git_does_not_trust_is_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    finding = doctor.git(here)
    assert finding.level == "fail"
    assert "detected dubious ownership" in finding.found
    assert finding.fix == f"git config --global --add safe.directory {here.repository}"


def test_another_python_than_this_one_is_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    assert doctor.python(here).level == "ok"
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.python(here).level == "warn"


def test_a_named_source_that_is_not_there_is_found(here: Workspace):
    replace(here.params, "kind: digits", "kind: folder\n    path: pictures")
    assert doctor.data(here).level == "fail"
    Path("pictures").mkdir()
    assert doctor.data(here).level == "ok"


def test_data_that_were_fetched_need_no_network(here: Workspace):
    replace(here.params, "kind: digits", "kind: mnist")
    here.raw.mkdir(parents=True)
    for name in ("train-images", "t10k-images", "train-labels", "t10k-labels"):
        (here.raw / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(b"")
    assert "already in data/raw" in doctor.data(here).found


def test_a_damaged_tracking_store_is_found(here: Workspace):
    """Mistake 21: a damaged store."""
    assert doctor.tracking(here).level == "ok"
    here.state.mkdir()
    (here.state / "mlflow.db").write_bytes(b"no database" * 1000)
    finding = doctor.tracking(here)
    assert finding.level == "fail"
    assert "vaeline sync" in finding.fix


def test_servers_that_are_away_are_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Mistake 21: a server that does not answer."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
    for finding in (doctor.tracking(here), doctor.prefect(here)):
        assert finding.level == "fail"
        assert finding.fix.startswith("start that server, or unset")
        assert "secret" not in str(finding)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an accelerator")  # noqa: PTH110
def test_a_device_that_is_not_there_is_found(here: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAELINE_DEVICE", "cuda")
    monkeypatch.setattr(doctor, "python", doctor.params)
    findings = {finding.name: finding for finding in doctor.examine(here)}
    assert findings["device"].level == "fail"


@pytest.mark.parametrize(("free", "level"), [(12_340_000_000, "ok"), (4_000_000_000, "warn"), (900_000_000, "fail")])
def test_free_space_is_in_gigabytes(here: Workspace, monkeypatch: pytest.MonkeyPatch, free: int, level: str):
    """Mistake 21: GB that are MB."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**13, 0, free))
    finding = doctor.disk(here)
    assert finding.level == level
    assert finding.found == f"{free / 10**9:.1f} GB free at {here.repository}"


def test_an_empty_folder_of_the_run_cache_is_found_and_the_fix_removes_it(here: Workspace):
    """Mistake 21: what makes `dvc repro` fail ever after."""
    run = here.repository / ".dvc" / "cache" / "runs" / "ab" / "abcd"
    run.mkdir(parents=True)
    finding = doctor.dvc(here)
    assert finding.level == "fail"
    execute("sh", "-c", finding.fix, cwd=here.repository)
    assert doctor.dvc(here).level == "ok"
