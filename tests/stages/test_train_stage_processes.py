"""The stage train by several processes, started by itself (VAELINE_NPROC) or by torchrun."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.services.workspace_lock import TEAM_STORE
from pipeline.stages.training_processes import assembled
from train_stage import COMMAND, edit, environment, outputs, run, steps, workspace  # noqa: F401
from vaeline.errors import UserError


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "reports" / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A training by two processes, once it has written a checkpoint; what it says goes to the file `said`."""
    team = environment(VAELINE_NPROC="2", VAELINE_THREADS="1", VAELINE_CHECKPOINT_SECONDS="0.2")
    seen = steps(folder)
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(COMMAND, cwd=folder, env=team, stderr=said)
    while not steps(folder) - seen:
        assert process.poll() is None
        time.sleep(0.02)
    return process


def others(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()]


def test_two_processes_train_what_one_trains(workspace: Path):
    assert run(workspace, VAELINE_THREADS="1").returncode == 0
    one = history(workspace)
    two = run(workspace, VAELINE_NPROC="2")
    assert (two.returncode, two.stderr.count("epoch 3/3: ELBO")) == (0, 1)
    for alone, team in zip(one, history(workspace), strict=True):
        assert team == pytest.approx(alone, rel=1e-4)
    assert len(list((workspace / ".vaeline" / "spool").glob("*/events.jsonl"))) == 2  # a run each
    assert not list((workspace / ".vaeline" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_team_stopped_or_robbed_of_a_member_ends_as_one_and_goes_on_to_the_same_bytes(workspace: Path):
    edit(workspace, "train", epochs=600, patience=600)
    process = start(workspace)
    (other,) = others(process)
    other.send_signal(signal.SIGTERM)  # to one: all stop, with a checkpoint
    assert process.wait(60) == 143
    assert not psutil.pid_exists(other.pid)

    process = start(workspace)
    (other,) = others(process)
    other.kill()
    assert process.wait(60) == 1
    (line,) = [line for line in (workspace / "said").read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: process 1 of the team ended with exit code -9: ")
    assert line.endswith("train-process-1.log)")

    process = start(workspace)
    (other,) = others(process)
    process.kill()  # the leader: nobody trains on without it
    process.wait()
    psutil.wait_procs([other], timeout=30)
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE

    resumed = run(workspace, VAELINE_NPROC="2", VAELINE_THREADS="1")
    assert (resumed.returncode, "resuming at step" in resumed.stderr) == (0, True)
    after = outputs(workspace)
    assert run(workspace, VAELINE_NPROC="2", VAELINE_THREADS="1").returncode == 0
    assert outputs(workspace) == after


@pytest.mark.parametrize("found", ["0", "two", "-1"])
def test_a_wrong_number_of_processes_is_one_line(workspace: Path, found: str):
    failed = run(workspace, VAELINE_NPROC=found)
    assert failed.returncode == 1
    assert (
        failed.stderr.splitlines()[-1]
        == f"error: VAELINE_NPROC: must be a whole number from 1 to 1024, found '{found}'"
    )


@pytest.mark.slow
def test_torchrun_starts_the_same_team(workspace: Path):
    assert run(workspace, VAELINE_NPROC="2", VAELINE_THREADS="1").returncode == 0
    ours = outputs(workspace)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, *COMMAND[1:]],
        cwd=workspace,
        env=environment(VAELINE_THREADS="1", GLOO_SOCKET_IFNAME="lo"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert outputs(workspace) == ours


def test_a_member_that_cannot_start_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", TEAM_STORE, "VAELINE_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VAELINE_NPROC", "2")
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    told = r"^process 1 of the team ended with exit code 1: .*No module named nowhere"
    with pytest.raises(UserError, match=told), assembled("nowhere"):
        pytest.fail("nobody is there")
