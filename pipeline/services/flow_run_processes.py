"""Flow-run process records: `.vaeline/flow-runs/<id>.json` names the process that works on a flow run.

Prefect leaves a flow run whose process and worker were killed "Running" for ever.
`python -m pipeline.services.flow_run_processes` is what a worker starts for a flow run: it writes its record,
ends with the worker, and becomes Prefect's engine.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.services.child_processes import ProcessRecord, die_with_parent
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import Workspace, current_workspace

PATIENCE_S = 30.0  # for what a killed worker left to write its checkpoint


def record(workspace: Workspace, flow_run_id: str, worker: int = 0) -> None:
    """Record this process as the one that works on a flow run, unless it is already."""
    process = ProcessRecord.of(os.getpid(), parent=worker)
    known = ProcessRecord.read(_path(workspace, flow_run_id))
    if known is None or (known.pid, known.started) != (process.pid, process.started):
        process.write(_path(workspace, flow_run_id))


def remove(workspace: Workspace, flow_run_id: str) -> None:
    """Remove the record of a flow run that has ended."""
    _path(workspace, flow_run_id).unlink(missing_ok=True)


def ended(workspace: Workspace) -> Iterator[str]:
    """The flow runs whose process has ended; one whose worker has ended is ending, and is waited for."""
    for path in sorted((workspace.state / "flow-runs").glob("*.json")):
        process = ProcessRecord.read(path)
        if process is None:
            continue
        if process.orphaned:
            _wait_or_kill(process)
        if not process.lives:
            yield path.stem


def _wait_or_kill(process: ProcessRecord) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.lives:
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


def _path(workspace: Workspace, flow_run_id: str) -> Path:
    return workspace.state / "flow-runs" / f"{flow_run_id}.json"


if __name__ == "__main__":
    die_with_parent(os.getppid())
    os.chdir(RunContext.read().workspace or ".")  # a worker starts each flow run in a folder of its own
    record(current_workspace(), os.environ["PREFECT__FLOW_RUN_ID"], os.getppid())
    os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
