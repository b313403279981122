"""The stage train by several processes, started by VAELINE_NPROC or by torchrun."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.stages.training_processes import launch
from train_stage import COMMAND, edit, environment, outputs, run, steps, workspace  # noqa: F401
from uploads import outbox_runs
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "reports" / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A training by two processes, once it has written a checkpoint; what it says goes to the file `said`."""
    variables = environment(VAELINE_NPROC="2", VAELINE_THREADS="1", VAELINE_CHECKPOINT_SECONDS="0.2")
    seen = steps(folder)
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(COMMAND, cwd=folder, env=variables, stderr=said)
    while not steps(folder) - seen:
        assert process.poll() is None
        time.sleep(0.02)
    return process


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a training, by rank."""
    children = [child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def test_two_processes_train_what_one_trains(workspace: Path):
    edit(workspace, "train", precision="float32")  # in which the order of sums hardly shows
    assert run(workspace, VAELINE_THREADS="1").returncode == 0
    one = history(workspace)
    two = run(workspace, VAELINE_NPROC="2")
    assert (two.returncode, two.stderr.count("epoch 3/3: ELBO")) == (0, 1)
    for single, several in zip(one, history(workspace), strict=True):
        assert several == pytest.approx(single, rel=1e-4)
    assert len(outbox_runs(workspace)) == 2  # a run each
    assert not list((workspace / ".vaeline" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_group_that_is_stopped_or_loses_a_process_ends_as_one_and_resumes_to_the_same_bytes(workspace: Path):
    edit(workspace, "train", epochs=600, patience=600)
    process = start(workspace)
    zero, other = workers(process)
    listening = [c for p in (psutil.Process(process.pid), zero, other) for c in p.net_connections("tcp")]
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    other.send_signal(signal.SIGTERM)  # to one: all stop, with a checkpoint
    assert process.wait(60) == 143
    assert not psutil.pid_exists(other.pid)

    process = start(workspace)
    zero, other = workers(process)
    other.kill()
    assert process.wait(60) == 1
    (line,) = [line for line in (workspace / "said").read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: process 1 of the group ended with exit code -9: ")
    assert line.endswith("train-processes/1.log)")

    process = start(workspace)
    zero, other = workers(process)
    process.kill()  # the launcher: no process trains on without it
    process.wait()
    assert not psutil.wait_procs([zero, other], timeout=30)[1]

    resumed = run(workspace, VAELINE_NPROC="2", VAELINE_THREADS="1")
    assert (resumed.returncode, "resuming at step" in resumed.stderr) == (0, True)
    after = outputs(workspace)
    assert run(workspace, VAELINE_NPROC="2", VAELINE_THREADS="1").returncode == 0
    assert outputs(workspace) == after


@pytest.mark.slow
def test_torchrun_starts_the_same_processes(workspace: Path):
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


def test_a_process_that_cannot_start_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VAELINE_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(
        (UserError, SystemExit), match=r"^(1|process 1 of the group .*: .*No module named .*nowhere.*)$"
    ):
        launch(2, Workspace(tmp_path, tmp_path), "nowhere")
