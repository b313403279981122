"""What the doctor finds, and that it says how to mend it."""

import os
import socket
from pathlib import Path

import pytest

from pipeline.commands import doctor
from workspaces import vaeline


def write_params(repository: Path, old: str, new: str) -> None:
    path = repository / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_sound_workspace_has_no_failure(toy: Path):
    (toy / "train.sh").write_text("cp raw.txt model.txt\n")
    done = vaeline("doctor", cwd=toy, VAELINE_DEVICE="cpu")
    levels = [line[:4].strip() for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert levels
    assert set(levels) <= {"ok", "warn"}
    for name in ("python", "git", "dvc", "params", "data", "tracking", "prefect", "device", "disk"):
        assert f"  {name:<9} " in done.stdout


def test_mistakes_in_params_and_a_broken_lock_fail_with_a_remedy(toy: Path):
    write_params(toy, "epochs: ", "epoch: ")
    (toy / "dvc.lock").write_text("schema: '2.0'\nstages:\n  fetch:\n    cmd: [")
    done = vaeline("doctor", cwd=toy, check=False, VAELINE_DEVICE="cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "fail  params" in done.stdout
    assert "train.epoch: unknown key" in done.stdout
    assert "fail  dvc" in done.stdout
    assert "mend: git checkout dvc.yaml dvc.lock" in done.stdout
    assert "ok    disk" in done.stdout or "warn  disk" in done.stdout, "one failure does not hide the rest"


def test_a_folder_without_git_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    finding = doctor.git()
    assert finding.level == "fail"
    assert "git clone" in finding.mend
    assert str(finding).count("\n") == 1


def test_a_repository_that_git_does_not_trust_is_found(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    finding = doctor.git()
    assert finding.level == "fail"
    assert "detected dubious ownership" in finding.seen
    assert finding.mend == f"git config --global --add safe.directory {toy}"


def test_a_named_source_that_is_not_there_is_found(toy: Path):
    write_params(toy, "kind: digits", "kind: folder\n    path: pictures")
    assert doctor.data_source().level == "fail"
    (toy / "pictures").mkdir()
    assert doctor.data_source().level == "ok"


def test_data_that_were_fetched_need_no_network(toy: Path):
    write_params(toy, "kind: digits", "kind: mnist")
    raw = toy / "data" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images", "t10k-images", "train-labels", "t10k-labels"):
        (raw / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(b"")
    assert "already in data/raw" in doctor.data_source().seen


def test_a_damaged_tracking_store_is_found(toy: Path):
    assert doctor.tracking().level == "ok"
    (toy / ".vaeline").mkdir()
    (toy / ".vaeline" / "mlflow.db").write_bytes(b"no database" * 1000)
    finding = doctor.tracking()
    assert finding.level == "fail"
    assert "vaeline sync" in finding.mend


def test_a_tracking_server_that_is_away_is_found(toy: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    done = vaeline("doctor", cwd=toy, check=False, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}", VAELINE_DEVICE="cpu")
    assert done.returncode == 1
    assert "fail  tracking" in done.stdout


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an accelerator")  # noqa: PTH110
def test_a_device_that_is_not_there_is_found(toy: Path):
    done = vaeline("doctor", cwd=toy, check=False, VAELINE_DEVICE="cuda")
    assert done.returncode == 1
    assert "fail  device" in done.stdout
