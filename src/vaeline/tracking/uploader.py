"""Uploader: a process of its own that sends a run to MLflow while a stage writes it; and `vaeline sync`.

`python -m vaeline.tracking.uploader REPOSITORY RUN` imports MLflow, `start_uploader` does not: training pays neither
for that nor for a server that is slow, hung or gone. One process at a time sends a run (a kernel lock). It ends once
the last writer has closed or died and it has tried to send the rest; what is unsent then goes with the next stage or
`vaeline sync`.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import UserError, redact
from vaeline.io.workspace import RunContext, Workspace
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.outbox import Outbox, RunOutbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLL_S, UPLOAD_EVERY_S, LONGEST_PAUSE_S = 0.1, 2.0, 60.0
KEEP_S = 14 * 24 * 3600  # a run that was sent is deleted from the outbox when it is this old

log = logging.getLogger(__name__)


def start_uploader(workspace: Workspace, run: RunOutbox) -> None:
    """Start an uploader in its own session, so that it outlives a killed stage; none where VAELINE_UPLOADER=off."""
    if os.environ.get("VAELINE_UPLOADER") == "off":
        return
    command = [sys.executable, "-m", "vaeline.tracking.uploader", str(workspace.repository.absolute()), run.name]
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


def follow(run: RunOutbox, workspace: Workspace) -> bool:
    """Send a run for as long as it is written; returns whether all of it could be sent.

    After a failure the pause before the next try doubles, up to a minute.
    """
    upload, pause, next_try = None, UPLOAD_EVERY_S, 0.0
    while True:
        last = not run.has_writer()  # asked before sending: after it, nothing is added
        if last or time.monotonic() >= next_try:
            try:
                if upload is None:
                    client = connect(workspace, tables=False)
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
        time.sleep(POLL_S)


def sync_all(workspace: Workspace) -> str:
    """Send everything unsent, once, also while others send; returns the counts. Raises UserError on a store away."""
    runs = [(run, run.has_writer()) for run in Outbox(workspace).runs()]
    unsent, sent = [(run, written) for run, written in runs if not run.is_sent()], []
    if unsent:
        client = connect(workspace, tables=False)
        with one_line_errors():
            sent = [None if written else _upload_if_free(run, client, workspace) for run, written in unsent]
    counts, busy = list(filter(None, sent)), sent.count(None)
    others = f"; {busy} still being written or sent by another process" if busy else ""
    return f"{sum(counts)} events of {len(counts)} runs sent{others}"


def upload_now(run: RunOutbox, client: "MlflowClient", workspace: Workspace, wait_s: float = 60.0) -> str:
    """Send a run, or wait until the process that follows it has; returns the id of its MLflow run.

    Raises UserError where the other process does not get there.
    """
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        arrived = _upload_if_free(run, client, workspace) is not None or run.is_sent()
        _, run_id, _ = run.progress(client.tracking_uri)
        if arrived and run_id is not None:
            return run_id
        time.sleep(POLL_S)
    raise UserError(f"{run.log}: {run.name} could not be sent within {wait_s:.0f} s; look there and try again")


def _upload_if_free(run: RunOutbox, client: "MlflowClient", workspace: Workspace) -> int | None:
    """Send a run; returns the number of events, or None where another process sends it."""
    from vaeline.tracking.upload import Upload

    if (lock := run.hold("uploader")) is None:
        return None
    try:
        return Upload(run, client, workspace).send()
    finally:
        os.close(lock)


def main() -> None:
    """Follow one run, then send what earlier ones left and delete what is old, sent and closed."""
    repository, name = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.nice(10)  # training first
    workspace = Workspace(Path(repository), Path(repository))
    outbox = Outbox(workspace)
    try:
        os.chdir(outbox.folder)  # DVC deletes the folders in which it runs experiments
        for run in [run for run in outbox.runs() if run.name == name]:
            run.hold("uploader", wait=True)  # until this process ends
            if follow(run, workspace):
                sync_all(workspace)
                for old in outbox.runs():
                    old.prune(time.time() - KEEP_S)
    except (UserError, OSError) as error:  # a full disk
        log.warning("%s", error)


if __name__ == "__main__":
    main()
