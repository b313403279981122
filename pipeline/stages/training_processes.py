"""Launcher of a stage that runs as several processes on this machine; torchrun starts them on several.

Each machine then needs the repository and data/prepared, and the result is on that of rank zero.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

from pipeline.stages.runner import ROOT
from vaeline.errors import UserError
from vaeline.io.machine import cores
from vaeline.io.workspace import Workspace
from vaeline.training.process_group import STORE

PEER_LOST = 75  # exit code of a process that ends because another one has
PATIENCE_S = 30.0  # from SIGTERM to SIGKILL
TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


def launch(size: int, workspace: Workspace, stage: str = "train") -> None:
    """Run a stage by `size` processes, which end with this one and with each other; output of rank zero is shown.

    They meet in a file: gloo alone listens, on loopback. Raises UserError where another rank failed; SystemExit with
    the exit code of rank zero where that one did, having reported why.
    """
    logs, processes = workspace.state.absolute() / "train-processes", []
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    defaults = {"VAELINE_THREADS": str(max(1, cores() // size)), "GLOO_SOCKET_IFNAME": "lo"}
    shared = defaults | os.environ | {STORE: (logs / "store").as_uri(), "WORLD_SIZE": str(size)}
    with ExitStack() as files:
        try:
            for rank in range(size):
                log = None if rank == 0 else files.enter_context((logs / f"{rank}.log").open("w"))
                command = [sys.executable, str(ROOT / "pipeline/stages/runner.py"), stage]
                env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            while None in (codes := [process.poll() for process in processes]) and not any(codes):
                time.sleep(0.1)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    failed = {rank: process.returncode for rank, process in enumerate(processes) if process.returncode}
    if failed:  # the cause: the process that did not end because of another one; NCCL aborts where a peer is lost
        secondary = (PEER_LOST, -signal.SIGABRT, *TERMINATED)
        rank, code = min(failed.items(), key=lambda item: (item[1] in secondary, item[0]))
        if code in TERMINATED or (rank == 0 and code > 0):  # it has reported why
            raise SystemExit(code if code > 0 else 128 - code)
        path = logs / f"{rank}.log"
        lines = path.read_text(errors="replace").split("\n") if rank else []
        last = next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "no output")
        raise UserError(f"process {rank} of the group ended with exit code {code}: {last} (see {path})")
