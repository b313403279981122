"""Uploader: a process of its own that sends a run to MLflow while a stage writes it, and its start.

`python -m vaeline.tracking.uploader REPOSITORY RUN` imports MLflow, `start_uploader` does not: training pays neither
for that nor for a server that is slow, hung or gone. One process at a time sends a run (a kernel lock). It ends once
the last writer has closed or died and it has tried to send the rest; what is unsent then goes with the next stage or
`vaeline sync`.
"""

import argparse
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import connect, redact
from vaeline.tracking.outbox import Outbox, RunOutbox
from vaeline.tracking.sync import TIMEOUT_S, prune, sync_all

POLL_S, UPLOAD_EVERY_S, LONGEST_PAUSE_S = 0.1, 2.0, 60.0
MEASURE_EVERY_S = 10.0
STANDBY_S = 120.0  # for another uploader to end after the last writer has

log = logging.getLogger(__name__)


def start_uploader(workspace: Workspace, run: RunOutbox, *, system_metrics: bool) -> None:
    """Start an uploader in its own session, so that it outlives a killed stage; none where VAELINE_UPLOADER=off."""
    if os.environ.get("VAELINE_UPLOADER") == "off":
        return
    command = [sys.executable, "-m", "vaeline.tracking.uploader", str(workspace.repository.absolute()), run.name]
    command += ["--system-metrics"] if system_metrics else []
    environment = dict(os.environ)
    if (path := RunContext.read().uploader_path) is not None:
        environment["PYTHONPATH"] = path
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    files += [(os.POSIX_SPAWN_OPEN, fd, str(run.log), create, 0o644) for fd in (1, 2)]
    try:
        os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True)
    except (OSError, NotImplementedError) as error:
        log.warning("%s stays in %s until `vaeline sync`: %s", run.name, run.outbox.path, error)


class SystemMetrics:
    """CPU, memory, disk, network and GPU as MLflow's own monitors measure them, put into the outbox."""

    def __init__(self, run: RunOutbox) -> None:
        self._run = run
        self._start: float = next((event["time"] / 1000 for _, event in run.read(limit=1)), time.time())
        self._next = time.monotonic() + 1.0
        self._monitors: list[Any] | None = None

    def measure(self) -> None:
        """Add a measurement, every ten seconds; its step is the run's age in seconds."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + MEASURE_EVERY_S
        values: dict[str, float] = {}
        try:
            if self._monitors is None:
                from vaeline.tracking.mlflow_internals import system_monitors

                self._monitors = system_monitors()
            for monitor in self._monitors:
                monitor.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._run.append("metrics", step=int(time.time() - self._start), values=values)
        except (ImportError, OSError, RuntimeError) as error:
            log.warning("no system metrics: %s", error)
            self._next = math.inf


def follow(run: RunOutbox, workspace: Workspace, system_metrics: SystemMetrics | None) -> bool:
    """Send a run for as long as it is written; returns whether all of it could be sent.

    After a failure the pause before the next try doubles, up to a minute.
    """
    upload, pause, next_try = None, UPLOAD_EVERY_S, 0.0
    while True:
        last = not run.has_writer()  # asked before sending: after it, nothing is added
        if last or time.monotonic() >= next_try:
            try:
                if upload is None:
                    client = connect(workspace, TIMEOUT_S, 0)
                    from vaeline.tracking.upload import Upload

                    upload = Upload(run, client, workspace)
                upload.send()
                pause, sent = UPLOAD_EVERY_S, True
            except Exception as error:  # whatever is below MLflow: HTTP, a database, a disk
                log.warning("%s: %s", type(error).__name__, redact(str(error)))
                pause, sent = min(2 * pause, LONGEST_PAUSE_S), False
            next_try = time.monotonic() + pause
            if last:
                return sent
        if system_metrics is not None:
            system_metrics.measure()
        time.sleep(POLL_S)


def main() -> None:
    """Follow one run, then send what earlier ones left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("run")
    parser.add_argument("--system-metrics", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.nice(10)  # training first
    workspace = Workspace(arguments.repository, arguments.repository)
    outbox = Outbox(workspace)
    try:
        os.chdir(outbox.folder)  # DVC deletes the folders in which it runs experiments
        for run in [run for run in outbox.runs() if run.name == arguments.run]:
            measured = SystemMetrics(run) if arguments.system_metrics else None
            if _wait_for_turn(run) and follow(run, workspace, measured):
                sync_all(workspace)
                prune(workspace)
    except (UserError, OSError) as error:  # a full disk
        log.warning("%s", error)


def _wait_for_turn(run: RunOutbox) -> bool:
    """Wait for the uploader before this one, if any, to end; the lock is kept until this process ends."""
    deadline = time.monotonic() + STANDBY_S
    while run.hold("uploader") is None:
        if run.has_writer():
            deadline = time.monotonic() + STANDBY_S
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    main()
