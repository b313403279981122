"""Outboxes of test workspaces, and waiting for uploaders."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry_fixture import START
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.outbox import Event, Outbox, RunOutbox
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import RunTracker, open_model_run, open_training_run

DIGEST = "m" * 64  # of a model


def train(key: str = "key", start: RunStart = START, **options: bool) -> RunTracker:
    """The run of a training."""
    return open_training_run(current_workspace(), key, start, **options)


def later_stage(**options: bool) -> RunTracker:
    """The run of the model DIGEST, for a stage after training."""
    return open_model_run(current_workspace(), DIGEST, START, **options)


def outbox_runs(folder: Path) -> list[RunOutbox]:
    """Runs in the outbox of a repository."""
    return Outbox(Workspace(folder, folder)).runs()


def outbox_events(folder: Path, *kinds: str) -> list[Event]:
    """Events of all runs in the outbox of a repository, of some kinds or all."""
    events = [event for run in outbox_runs(folder) for _, event in run.read()]
    return [event for event in events if not kinds or event["kind"] in kinds]


def until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What the condition comes to."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)
    return found


def is_free(run: RunOutbox) -> bool:
    """Whether no uploader follows a run."""
    descriptor = run.hold("uploader")
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A real server that keeps runs and artifacts in a folder: its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    with (folder / "server.log").open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers() -> bool:
    """Whether the tracking store does."""
    try:
        connect(current_workspace())
    except UserError:
        return False
    return True
