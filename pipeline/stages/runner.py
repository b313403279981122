"""The one way in which a stage starts: `python pipeline/stages/runner.py NAME` calls `pipeline.stages.NAME.main`.

A stage runs the code beside its `dvc.yaml`, whatever `vaeline` is installed: in a clone, a Git worktree and the copies
in which DVC runs experiments, what is recorded is what ran. What the stage starts inherits that by PYTHONPATH.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]


def main(name: str) -> NoReturn:
    """Run a stage as a program of its own: signals, import path and environment first, then the imports."""
    parent = os.getppid()  # before the seconds that imports take, in which it may end
    end_on_signals()
    use_own_code()
    run_stage(name, parent)


def end_on_signals() -> None:
    """Until the stage answers to them, signals end it without a traceback; the end of its parent sends one."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def use_own_code() -> None:
    """Put this file's repository first in the import path, of this process and of those that it starts."""
    own = [str(ROOT / "src"), str(ROOT)]
    sys.path[:] = [*own, *(path for path in sys.path if path not in (*own, str(Path(__file__).resolve().parent)))]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in own]
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *inherited])


def run_stage(name: str, parent: int) -> NoReturn:
    """Run a stage's `main` as `run_and_leave` does, with plain log lines.

    It ends with its parent: a killed `dvc repro` leaves no orphan that works on beside a second one. Where another
    run is at work in this workspace it does nothing; where something outside is away it exits with TRY_AGAIN.
    """
    from pipeline.services.child_processes import die_with_parent
    from vaeline.command.program import run_and_leave, set_process_defaults

    die_with_parent(parent)
    set_process_defaults()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("vaeline", "pipeline"):
        logging.getLogger(ours).setLevel(logging.INFO)
    stage = import_module(f"pipeline.stages.{name}")  # while signals still end it at once
    run_and_leave(lambda: _run(name, stage.main))


def _run(name: str, main: Callable[[], None]) -> None:
    """Call the stage while it holds the workspace's stage lock."""
    from pipeline.services.workspace_lock import stage_turn
    from vaeline import __file__ as library
    from vaeline.errors import TRY_AGAIN, TransientError, UserError

    if library is None or not Path(library).resolve().is_relative_to(ROOT):
        raise UserError(f"{ROOT}: stage {name} would run the vaeline of {library}, not the one beside dvc.yaml")
    with stage_turn():
        try:
            main()
        except TransientError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)  # noqa: T201
            sys.exit(TRY_AGAIN)


if __name__ == "__main__":
    main(sys.argv[1])
