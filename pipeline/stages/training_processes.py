"""The processes that train together: `VAELINE_NPROC` on this machine, or those that torchrun started.

With VAELINE_NPROC=4 the stage itself leads and starts three more of itself; they meet in a file, talk over the
loopback interface (NCCL on GPUs, gloo on CPUs) and die with it. torchrun, which can start them on several machines,
is known by RANK and WORLD_SIZE; each machine then needs the repository and data/prepared, the leader's has the result.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired

import torch
import torch.distributed as dist

from pipeline.services.child_processes import Process, die_with_parent, spawn, stop
from pipeline.services.workspace_lock import TEAM_STORE
from pipeline.stages.runner import ROOT
from vaeline.errors import UserError
from vaeline.io.workspace import make_state_folder
from vaeline.training.device import pick_device
from vaeline.training.process_group import ALONE, Team

PATIENCE_S = 60.0  # for the others to end after the leader's last step


@contextmanager
def assembled(stage: str) -> Iterator[Team]:
    """This process's place in the team that runs this stage.

    Raises UserError where VAELINE_NPROC is no number and where another process of the team ends early.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with _joined() as team:
            yield team
        return
    size = _wanted()
    if size == 1:
        yield ALONE
        return
    os.environ.setdefault("VAELINE_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    with tempfile.TemporaryDirectory(prefix="vaeline-team-") as folder:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(size), TEAM_STORE: str(Path(folder) / "store")}
        others = [_start(stage, rank) for rank in range(1, size)]
        try:
            _gather(others)
            with _joined() as team:
                yield team
            _wait(others)
        except RuntimeError:  # gloo's and NCCL's, when a peer is gone
            if fallen := [rank for rank, other in enumerate(others, 1) if other.poll() not in (None, 0)]:
                raise UserError(_epitaph(fallen[0], others[fallen[0] - 1])) from None
            raise
        finally:
            for other in others:
                stop(other, patience=0.0)


def agree(team: Team, key: str) -> None:
    """Raise UserError where this process would train something else than the leader."""
    if not team.alone and team.share(key.encode(), pick_device()).decode() != key:
        raise UserError(f"process {team.rank} of {team.size}: its params, data, code or device are not the leader's")


def _wanted() -> int:
    text = os.environ.get("VAELINE_NPROC") or "1"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise UserError(f"VAELINE_NPROC: must be a whole number from 1 to 1024, found {text!r}")
    size = int(text)
    if size > 1 and pick_device().type == "cuda" and size > torch.cuda.device_count():
        raise UserError(f"VAELINE_NPROC: {size} processes need a GPU each, {torch.cuda.device_count()} are here")
    return size


@contextmanager
def _joined() -> Iterator[Team]:
    team = Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    backend = "nccl" if pick_device().type == "cuda" else "gloo"
    meeting = None  # torchrun's address
    if path := os.environ.get(TEAM_STORE):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting = f"file://{path}"
        if not team.leads:
            die_with_parent(os.getppid(), signal.SIGKILL)  # holds nothing, may wait for a leader that is gone
            _arrival(team.rank).touch()
    dist.init_process_group(backend, meeting, rank=team.rank, world_size=team.size)
    try:
        yield team
    finally:
        dist.destroy_process_group()


def _start(stage: str, rank: int) -> Process:
    with _log(rank).open("w") as log:
        return spawn(
            [sys.executable, str(ROOT / "pipeline/stages/runner.py"), stage],
            os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            log,
        )


def _gather(others: Sequence[Process]) -> None:
    """Wait until the others are about to join: joining itself waits half an hour for one that is gone, deaf to signals.

    Raises UserError where one has ended.
    """
    for rank, other in enumerate(others, 1):
        while not _arrival(rank).exists():
            if other.poll() is not None:
                raise UserError(_epitaph(rank, other))
            time.sleep(0.05)


def _arrival(rank: int) -> Path:
    return Path(f"{os.environ[TEAM_STORE]}.{rank}")


def _wait(others: Sequence[Process]) -> None:
    for other in others:
        with suppress(TimeoutExpired):
            other.wait(PATIENCE_S)


def _log(rank: int) -> Path:
    return make_state_folder() / f"train-process-{rank}.log"


def _epitaph(rank: int, process: Process) -> str:
    lines = [line for line in _log(rank).read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "no output"
    return f"process {rank} of the team ended with exit code {process.returncode}: {last} (see {_log(rank)})"
