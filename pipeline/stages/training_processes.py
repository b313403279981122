"""Stage train by several processes: `VAELINE_NPROC` of them on this machine, launched as torchrun does.

torchrun itself can start them on several machines; each then needs the repository and data/prepared, and the result is
on the machine of rank zero.
"""

import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.stages.runner import ROOT
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.training.device import pick_device
from vaeline.training.process_group import PeerLostError, ProcessGroup
from vaeline.training.settings import whole_number

log = logging.getLogger(__name__)

PEER_LOST = 75  # exit code of a process that ends because another one has


def wanted_processes() -> int:
    """VAELINE_NPROC, 1 where it is not set. Raises UserError where it is no number or more than there are GPUs."""
    size = whole_number("VAELINE_NPROC", 1, most=1024)
    if size > 1 and pick_device().type == "cuda" and size > torch.cuda.device_count():
        raise UserError(f"VAELINE_NPROC: {size} processes need a GPU each, {torch.cuda.device_count()} are here")
    return size


def launch(size: int, workspace: Workspace, stage: str = "train") -> None:
    """Run a stage by `size` processes, which end with this one; output of rank zero is shown, of others logged.

    Signals are forwarded. Raises UserError where another rank failed; SystemExit with the exit code of rank zero
    where that one did, having reported why.
    """
    logs = workspace.state / "train-processes"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    os.environ.setdefault("VAELINE_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    store = _loopback_store()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        rdzv_backend="static",
        rdzv_endpoint=f"{store.host}:{store.port}",
        rdzv_configs={"rank": 0},
        local_addr=store.host,
        run_id=stage,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, size), Std.ALL)),
    )
    try:
        elastic_launch(config, sys.executable)(str(ROOT / "pipeline/stages/runner.py"), stage)
    except SignalException as error:
        raise (KeyboardInterrupt if error.sigval == signal.SIGINT else SystemExit(128 + error.sigval)) from None
    except ChildFailedError as error:
        _report(error)


def _loopback_store() -> TCPStore:
    """Store that the rendezvous of this process shares; one that torch binds itself listens on every interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1", port, is_master=True, multi_tenant=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


@contextmanager
def ending_with_peers() -> Iterator[None]:
    """End with PEER_LOST and one line, no traceback, where another process of the group has ended."""
    try:
        yield
    except PeerLostError as error:
        log.warning("%s", error)
        sys.exit(PEER_LOST)


def refuse_other_training(group: ProcessGroup, key: str, device: torch.device) -> None:
    """Raise UserError where this process would train something else than rank zero."""
    if group.broadcast(key.encode(), device).decode() != key:
        raise UserError(f"process {group.rank} of {group.size}: its params, data, code or device are not rank zero's")


def _report(error: ChildFailedError) -> NoReturn:
    """Raise the cause: of the failed processes the one that did not end because of another one."""
    terminated = (-signal.SIGTERM, 128 + signal.SIGTERM)  # as the launcher does with the others
    secondary = (PEER_LOST, -signal.SIGABRT, *terminated)  # NCCL aborts a process that has lost another
    rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode in secondary, item[0]))
    code = failure.exitcode
    if code in terminated or (rank == 0 and code > 0):  # it has reported why
        raise SystemExit(code if code > 0 else 128 - code) from None
    stderr = Path(failure.error_file).with_name("stderr.log")
    lines = stderr.read_text(errors="replace").splitlines() if stderr.exists() else []
    last = next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "no output")
    raise UserError(f"process {rank} of the group ended with exit code {code}: {last} (see {stderr})") from None
