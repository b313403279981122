"""Sends spools from the process that calls, when no shipper follows them."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.io.locks import acquire
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.outbox import Progress, RunOutbox, all_outboxes, discard

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_S = 10  # of one request
KEEP_S = 14 * 24 * 3600  # a spool that was sent is deleted when it is this old


@dataclass(frozen=True)
class SyncReport:
    """What `sync_all` did."""

    runs: int = 0  # that had something unsent
    events: int = 0  # sent
    busy: int = 0  # runs that another process is writing or sending

    def __str__(self) -> str:
        busy = f"; {self.busy} still being written or sent by another process" if self.busy else ""
        return f"{self.events} events of {self.runs} runs sent{busy}"


def sync_all(workspace: Workspace) -> SyncReport:
    """Send everything unsent, once, whoever else is sending. Raises UserError where the store is away."""
    waiting = [(spool, spool.has_writer()) for spool in all_outboxes(workspace) if not spool.is_sent()]
    if not waiting:
        return SyncReport()
    client = connect(workspace, TIMEOUT_S, 0)
    with one_line_errors():
        sent = [None if busy else _ship_if_free(spool, client, workspace) for spool, busy in waiting]
    return SyncReport(
        runs=sum(1 for count in sent if count),
        events=sum(count or 0 for count in sent),
        busy=sum(1 for count in sent if count is None),
    )


def upload_now(spool: RunOutbox, client: "MlflowClient", workspace: Workspace, wait_s: float = 60.0) -> str:
    """Send a spool, or wait until whoever follows it has; returns the id of its MLflow run.

    Raises UserError where the other one does not get there.
    """
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        arrived = _ship_if_free(spool, client, workspace) is not None or spool.is_sent()
        run_id = Progress.of(spool, client.tracking_uri).run_id
        if arrived and run_id is not None:
            return run_id
        time.sleep(0.1)
    raise UserError(f"{spool.folder}: could not be sent within {wait_s:.0f} s; look into ship.log there and try again")


def prune(workspace: Workspace) -> None:
    """Delete what is old, sent and closed."""
    for spool in all_outboxes(workspace):
        age = time.time() - spool.events.stat().st_mtime
        if age > KEEP_S and not spool.has_writer() and spool.is_sent():
            discard(spool)


def _ship_if_free(spool: RunOutbox, client: "MlflowClient", workspace: Workspace) -> int | None:
    """Send a spool; returns the number of events, or None where another process is at it."""
    lock = acquire(spool.folder / "ship.lock", wait=False)
    if lock is None:
        return None
    try:
        from vaeline.tracking.upload import Courier

        return Courier(spool, client, workspace).ship()
    finally:
        os.close(lock)
