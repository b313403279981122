"""Whose turn it is in a workspace: one run of the pipeline at a time, and no stage of a `dvc repro` beside it.

Two kernel locks in `.vaeline/`, freed by the kernel however their holders end: `run.lock`, held by a run from its
first look at DVC to its last stage, and `stage.lock`, shared by the stages under way. DVC's own lock lets two
`dvc repro` compute at once as long as none writes what the other uses, and refuses, without waiting, where one does.
So it keeps the outputs whole, but not a device to one training, nor a run's stages together: that is done here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vaeline.errors import UserError
from vaeline.io.locks import acquire
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import make_state_folder, repository_root

WhenBusy = Literal["wait", "skip"]


class BusyError(UserError):
    """Somebody else is at work here."""


@contextmanager
def workspace_lock(log: Callable[[str], None], when_busy: WhenBusy = "wait") -> Iterator[RunContext]:
    """Only one run in a workspace at a time; yields the context of its stages.

    A second one waits, and says for whom, or raises BusyError. The same holds while the stage of a `dvc repro`, or
    what a killed run left, is at work.
    """
    folder = make_state_folder()
    run = _take(folder / "run.lock", log, when_busy)
    try:
        os.truncate(run, 0)
        os.pwrite(run, str(os.getpid()).encode(), 0)
        os.close(_take(folder / "stage.lock", log, when_busy))  # none is under way, and from here on none begins
        yield replace(RunContext.read(), run=str(os.getpid()))
    finally:
        os.close(run)


def _take(path: Path, log: Callable[[str], None], when_busy: WhenBusy) -> int:
    descriptor = acquire(path, wait=False)
    if descriptor is None:
        who = f"another run (process {path.read_text()})" if path.name == "run.lock" else "a stage of a `dvc repro`"
        if when_busy == "skip":
            raise BusyError(f"{who} is at work here")
        log(f"{who} is at work here: waiting for its end")
        descriptor = acquire(path)
    assert descriptor is not None
    return descriptor


@contextmanager
def stage_turn() -> Iterator[None]:
    """What a stage does within its turn. Raises BusyError where another run than its own is at work here.

    It does not wait: DVC keeps this stage's files locked for it, and the run may need just those. An experiment's
    copy of the workspace has nobody else in it.
    """
    if os.environ.get("RANK", "0") != "0":  # of the processes that train together rank zero holds the lock
        yield
        return
    root = repository_root()
    if not root.exists() or not Path.cwd().samefile(root):
        yield
        return
    folder = make_state_folder()
    stage = acquire(folder / "stage.lock", shared=True)
    try:
        run = acquire(folder / "run.lock", wait=False, shared=True)
        if run is not None:
            os.close(run)
        elif (folder / "run.lock").read_text() != RunContext.read().run:
            number = (folder / "run.lock").read_text()
            raise BusyError(f"a run of the pipeline (process {number}) is at work here; try again when it has ended")
        yield
    finally:
        if stage is not None:
            os.close(stage)
