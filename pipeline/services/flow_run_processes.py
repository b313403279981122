"""Which process works on which flow run: `.vaeline/flow-runs/<id>.json`, so that a dead one is noticed.

Prefect leaves a flow run whose process and worker were killed "Running" for ever.
`python -m pipeline.services.flow_run_processes` is what a worker starts for a flow run: it notes itself,
binds its life to the worker's, and becomes Prefect's engine.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.services.child_processes import Identity, die_with_parent
from vaeline.io.atomic_write import write_file
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import state_folder

PATIENCE_S = 30.0  # for what a killed worker left to write its checkpoint


@dataclass(frozen=True)
class Attempt:
    """A process at work on a flow run, and the worker that it is not to outlive, if a worker started it."""

    process: Identity
    worker: Identity | None = None


def note(flow_run_id: str, worker: Identity | None = None) -> None:
    """Say that this process works on a flow run, unless it has said so."""
    process = Identity.of(os.getpid())
    assert process is not None
    known = _read(_path(flow_run_id))
    if known is None or known.process != process:
        write_file(_path(flow_run_id), json.dumps(asdict(Attempt(process, worker))).encode())


def forget(flow_run_id: str) -> None:
    """The flow run has come to its end, whichever."""
    _path(flow_run_id).unlink(missing_ok=True)


def ended() -> Iterator[str]:
    """The flow runs whose process has ended; one whose worker has is ending, and is waited for."""
    for path in sorted(_folder().glob("*.json")):
        attempt = _read(path)
        if attempt is None:
            continue
        if attempt.worker and not attempt.worker.lives():
            _see_out(attempt.process)
        if not attempt.process.lives():
            yield path.stem


def _see_out(process: Identity) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.lives() and time.monotonic() < deadline:
        time.sleep(0.1)
    if process.lives():
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


def _folder() -> Path:
    return state_folder() / "flow-runs"


def _path(flow_run_id: str) -> Path:
    return _folder() / f"{flow_run_id}.json"


def _read(path: Path) -> Attempt | None:
    try:
        content = json.loads(path.read_text())
        worker = content["worker"]
        return Attempt(Identity(**content["process"]), Identity(**worker) if worker else None)
    except (OSError, ValueError, TypeError, KeyError):
        return None


if __name__ == "__main__":
    die_with_parent(os.getppid())
    os.chdir(RunContext.read().workspace or ".")  # a worker starts each flow run in a folder of its own
    note(os.environ["PREFECT__FLOW_RUN_ID"], Identity.of(os.getppid()))
    os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
