"""Uploads from the process that calls, where no uploader follows a run."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.outbox import Outbox, RunOutbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_S = 10  # of one request
KEEP_S = 14 * 24 * 3600  # a run that was sent is deleted from the outbox when it is this old


@dataclass(frozen=True)
class SyncReport:
    """Counts of `sync_all`."""

    runs: int = 0  # that had something unsent
    events: int = 0  # sent
    busy: int = 0  # runs that another process is writing or sending

    def __str__(self) -> str:
        busy = f"; {self.busy} still being written or sent by another process" if self.busy else ""
        return f"{self.events} events of {self.runs} runs sent{busy}"


def sync_all(workspace: Workspace) -> SyncReport:
    """Send everything unsent, once, whoever else is sending. Raises UserError where the store is away."""
    open_or_not = [(run, run.has_writer()) for run in Outbox(workspace).runs()]
    waiting = [(run, busy) for run, busy in open_or_not if not run.is_sent()]
    if not waiting:
        return SyncReport()
    client = connect(workspace, TIMEOUT_S, 0)
    with one_line_errors():
        sent = [None if busy else _upload_if_free(run, client, workspace) for run, busy in waiting]
    counts = [count for count in sent if count is not None]
    return SyncReport(runs=sum(map(bool, counts)), events=sum(counts), busy=len(sent) - len(counts))


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
        time.sleep(0.1)
    raise UserError(f"{run.log}: {run.name} could not be sent within {wait_s:.0f} s; look there and try again")


def prune(workspace: Workspace) -> None:
    """Delete from the outbox what is old, sent and closed."""
    for run in Outbox(workspace).runs():
        run.prune(time.time() - KEEP_S)


def _upload_if_free(run: RunOutbox, client: "MlflowClient", workspace: Workspace) -> int | None:
    """Send a run; returns the number of events, or None where another process sends it."""
    if (lock := run.hold("uploader")) is None:
        return None
    try:
        from vaeline.tracking.upload import Upload

        return Upload(run, client, workspace).send()
    finally:
        os.close(lock)
