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
from vaeline.io.workspace import RunContext, Workspace, current_workspace

PATIENCE_S = 30.0  # for what a killed worker left to write its checkpoint


def record_path(workspace: Workspace, flow_run_id: str) -> Path:
    """The record of a flow run, to be removed when it has ended."""
    return workspace.state / "flow-runs" / f"{flow_run_id}.json"


def record(workspace: Workspace, flow_run_id: str, worker: int = 0) -> None:
    """Record this process as the one that works on a flow run, unless it is already."""
    path, process = record_path(workspace, flow_run_id), ProcessRecord.of(os.getpid(), parent=worker)
    known = ProcessRecord.read(path)
    if known is None or (known.pid, known.started) != (process.pid, process.started):
        process.write(path)


def ended(workspace: Workspace) -> Iterator[str]:
    """The flow runs whose process has ended; one whose worker has ended is ending, and is waited for."""
    for path in sorted((workspace.state / "flow-runs").glob("*.json")):
        if (process := ProcessRecord.read(path)) is None:
            continue
        deadline = time.monotonic() + PATIENCE_S
        while process.orphaned and process.lives:
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        if not process.lives:
            yield path.stem


if __name__ == "__main__":
    die_with_parent(os.getppid())
    os.chdir(RunContext.read().workspace or ".")  # a worker starts each flow run in a folder of its own
    record(current_workspace(), os.environ["PREFECT__FLOW_RUN_ID"], os.getppid())
    os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
