"""The one way in which a stage starts: `python pipeline/stages/runner.py NAME` calls `pipeline.stages.NAME.main`.

A stage runs the code beside its `dvc.yaml`, whatever `vaeline` is installed: in a clone, a Git worktree and the copies
in which DVC runs experiments, what is recorded is what ran. What the stage starts inherits that by PYTHONPATH.
"""

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
    """Run a stage as a program of its own, with plain log lines.

    It ends with its parent: a killed `dvc repro` leaves no stage at work beside a second one. Exits with TRY_AGAIN
    where something outside is away. Until the stage handles them, signals end it without a traceback.
    """
    parent = os.getppid()  # before the seconds that imports take, in which it may end
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder = str(Path(__file__).resolve().parent)  # where Python looks first when it runs this file
    sys.path[:] = [str(ROOT / "src"), str(ROOT), *(path for path in sys.path if path != folder)]
    from pipeline.services.child_processes import die_with_parent
    from vaeline.command.program import use_code_of

    die_with_parent(parent)
    use_code_of(ROOT)
    from vaeline.command.program import run_and_leave, set_process_defaults

    set_process_defaults()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("vaeline", "pipeline"):
        logging.getLogger(ours).setLevel(logging.INFO)
    stage = import_module(f"pipeline.stages.{name}")  # while signals still end it at once
    run_and_leave(lambda: run_stage(name, stage.main))


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Call a stage's `main` under the workspace's stage lock. Raises UserError where the code is of another place."""
    from pipeline.services.workspace_lock import stage_lock
    from vaeline import __file__ as library
    from vaeline.errors import TRY_AGAIN, TransientError, UserError
    from vaeline.io.workspace import current_workspace

    if library is None or not Path(library).resolve().is_relative_to(ROOT):
        raise UserError(f"{ROOT}: stage {name} would run the vaeline of {library}, not the one beside dvc.yaml")
    with stage_lock(current_workspace()):
        try:
            main()
        except TransientError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)  # noqa: T201
            sys.exit(TRY_AGAIN)


if __name__ == "__main__":
    main(sys.argv[1])
