"""Which process works on which flow run: `.vaeline/flow-runs/<id>.json`, so that a dead one is noticed.

Prefect leaves a flow run whose process and worker were killed "Running" for ever. `python -m pipeline.attempts` is
what a worker starts for a flow run: it notes itself, binds its life to the worker's, and becomes Prefect's engine.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.processes import Identity, die_with_parent
from vaeline.durable import write_whole
from vaeline.workspace import state_folder

WORKSPACE = "VAELINE_WORKSPACE"  # the clone that a worker works in


def note(flow_run_id: str) -> None:
    """Say that this process works on a flow run."""
    identity = Identity.of(os.getpid())
    assert identity is not None
    write_whole(_path(flow_run_id), json.dumps(asdict(identity)).encode())


def forget(flow_run_id: str) -> None:
    """The flow run has come to its end, whichever."""
    _path(flow_run_id).unlink(missing_ok=True)


def dead() -> Iterator[str]:
    """The flow runs whose process has ended without a word."""
    for path in sorted(_folder().glob("*.json")):
        try:
            identity = Identity(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if not identity.lives():
            yield path.stem


def _folder() -> Path:
    return state_folder() / "flow-runs"


def _path(flow_run_id: str) -> Path:
    return _folder() / f"{flow_run_id}.json"


if __name__ == "__main__":
    die_with_parent()
    os.chdir(os.environ.get(WORKSPACE, "."))  # a worker starts each flow run in a folder of its own
    note(os.environ["PREFECT__FLOW_RUN_ID"])
    os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
