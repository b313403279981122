"""The shipper: a process of its own that sends a spool to MLflow while a stage writes it.

`python -m vaeline.tracking.uploader FOLDER` imports MLflow here, so that training pays neither for that nor for a
server that is slow, hung or gone. Only one ships a spool at a time (a kernel lock). It ends once the last writer has
closed or died and the rest is sent or could not be; what is left goes with the next stage or `vaeline sync`.
"""

import argparse
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.locks import acquire
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.tracking.connection import connect, redact
from vaeline.tracking.outbox import RunOutbox
from vaeline.tracking.sync import TIMEOUT_S, prune, sync_all

POLL_S, SHIP_EVERY_S, LONGEST_PAUSE_S = 0.1, 2.0, 60.0
MEASURE_EVERY_S = 10.0
STANDBY_S = 120.0  # for another shipper to end after the last writer has

log = logging.getLogger(__name__)


class SystemMetrics:
    """CPU, memory, disk, network and GPU as MLflow's own monitors measure them, put into the spool."""

    def __init__(self, spool: RunOutbox) -> None:
        self._spool = spool
        self._start: float = next((event["time"] / 1000 for event, _ in spool.read()), time.time())
        self._next = time.monotonic() + 1.0
        self._monitors: list[Any] | None = None

    def measure(self) -> None:
        """Add a measurement, every ten seconds; its step is the run's age in seconds."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + MEASURE_EVERY_S
        try:
            self._monitors = _monitors() if self._monitors is None else self._monitors
            self._spool.append("metrics", step=int(time.time() - self._start), values=self._values(self._monitors))
        except (ImportError, OSError, RuntimeError) as error:
            log.warning("no system metrics: %s", error)
            self._next = math.inf

    def _values(self, monitors: list[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    for kind in kinds:
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError) as error:
            log.info("not measured: %s", error)
    return monitors


def follow(spool: RunOutbox, workspace: Workspace, system_metrics: SystemMetrics | None) -> bool:
    """Send a spool for as long as it is written; returns whether all of it could be sent."""
    courier, pause, next_try = None, SHIP_EVERY_S, 0.0
    while True:
        last = not spool.has_writer()  # asked before sending: after it, nothing is added
        if last or time.monotonic() >= next_try:
            try:
                if courier is None:
                    client = connect(workspace, TIMEOUT_S, 0)
                    from vaeline.tracking.upload import Courier

                    courier = Courier(spool, client, workspace)
                courier.ship()
                pause, sent = SHIP_EVERY_S, True
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
    """Follow one spool, then send what earlier runs left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--system-metrics", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.nice(10)  # training first
    spool, workspace = RunOutbox(arguments.folder.absolute()), current_workspace()
    os.chdir(spool.folder.parent)  # DVC deletes the folders in which it runs experiments
    try:
        if _take_turn(spool) and follow(spool, workspace, SystemMetrics(spool) if arguments.system_metrics else None):
            sync_all(workspace)
            prune(workspace)
    except FileNotFoundError:
        log.info("the spool was deleted")
    except (UserError, OSError) as error:  # a full disk
        log.warning("%s", error)


def _take_turn(spool: RunOutbox) -> bool:
    """Wait for the shipper before this one, if any, to end; the lock is kept until this process ends."""
    deadline = time.monotonic() + STANDBY_S
    while acquire(spool.folder / "ship.lock", wait=False) is None:
        if spool.has_writer():
            deadline = time.monotonic() + STANDBY_S
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    main()
