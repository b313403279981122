"""Start of every stage: `python pipeline/stages/runner.py NAME` calls `pipeline.stages.NAME.main`.

A stage runs the code beside its `dvc.yaml`, whatever `vaeline` is installed: in a clone, a Git worktree and the copies
in which DVC runs experiments, what is recorded is what ran. What the stage starts inherits that by PYTHONPATH.
"""

import logging
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]


def main(name: str) -> NoReturn:
    """Run a stage as a program of its own, with plain log lines, under the workspace's stage lock.

    It ends with its parent: a killed `dvc repro` leaves no stage at work beside a second one. Exits with TRY_AGAIN
    where something outside is away. Until the stage handles them, signals end it without a traceback.
    """
    parent = os.getppid()  # before the seconds that imports take, in which it may end
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    own, folder = [str(ROOT / "src"), str(ROOT)], str(Path(__file__).resolve().parent)  # where Python looks first
    sys.path[:] = [*own, *(path for path in sys.path if path not in (*own, folder))]
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    from pipeline.services.child_processes import die_with_parent
    from pipeline.services.workspace_lock import stage_lock
    from vaeline.command import program
    from vaeline.errors import TRY_AGAIN, TransientError, UserError
    from vaeline.io.progress import heartbeat
    from vaeline.io.workspace import current_workspace

    def run() -> None:
        if not Path(program.__file__).resolve().is_relative_to(ROOT):
            library = Path(program.__file__).parents[1]
            raise UserError(f"{ROOT}: stage {name} would run the vaeline of {library}, not the one beside dvc.yaml")
        with stage_lock(current_workspace()), heartbeat(name):
            try:
                stage.main()
            except TransientError as error:
                print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)  # noqa: T201
                sys.exit(TRY_AGAIN)

    die_with_parent(parent)
    program.set_process_defaults()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("vaeline", "pipeline"):
        logging.getLogger(ours).setLevel(logging.INFO)
    stage = import_module(f"pipeline.stages.{name}")  # while signals still end it at once
    program.run_program(run)


if __name__ == "__main__":
    main(sys.argv[1])
