"""Workspace lock: one run of the pipeline at a time in a workspace, and no stage of a `dvc repro` beside it.

Two kernel locks in `.vaeline/`, freed by the kernel however their holders end: `run.lock`, held by a run from its
first look at DVC to its last stage, and `stage.lock`, shared by the stages at work. DVC's own lock keeps outputs whole,
but neither a device to one training nor a run's stages together.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from vaeline.errors import UserError
from vaeline.io.locks import acquire, locked
from vaeline.io.workspace import RunContext, Workspace

WhenBusy = Literal["wait", "skip"]
RUN, STAGE = "run.lock", "stage.lock"


class BusyError(UserError):
    """Another run or stage is at work in the workspace."""


@contextmanager
def workspace_lock(
    workspace: Workspace, log: Callable[[str], None], when_busy: WhenBusy = "wait"
) -> Iterator[RunContext]:
    """The lock of a run; yields the context of its stages.

    Waits, with a log line, or raises BusyError, while another run, the stage of a `dvc repro`, or what a killed run
    left is at work. Nothing to wait for where RunContext says that this process has it.
    """
    if (context := RunContext.read()).run == str(os.getpid()):
        yield context
        return

    def report_wait(who: str) -> None:
        if when_busy == "skip":
            raise BusyError(f"{who} is at work here")
        log(f"{who} is at work here: waiting for its end")

    run, stage = (workspace.make_state() / name for name in (RUN, STAGE))
    with locked(run, lambda: report_wait(f"another run (process {run.read_text()})")) as lock:
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        with locked(stage, lambda: report_wait("a stage of a `dvc repro`")):
            pass  # none is at work, and from here on none begins
        yield replace(context, run=str(os.getpid()))


@contextmanager
def stage_lock(workspace: Workspace) -> Iterator[None]:
    """The lock of a stage. Raises BusyError where another run than its own is at work in the workspace.

    It does not wait: DVC keeps this stage's files locked for it, and the run may need just those. The copy of the
    workspace in which an experiment runs needs no lock, and of the processes that train together rank zero holds it.
    """
    copy = not workspace.repository.exists() or not workspace.root.samefile(workspace.repository)
    if copy or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = workspace.make_state()
    stage = acquire(folder / STAGE, shared=True)
    assert stage is not None
    try:
        run = acquire(folder / RUN, wait=False, shared=True)
        if run is not None:
            os.close(run)
        elif (holder := (folder / RUN).read_text()) != RunContext.read().run:
            raise BusyError(f"a run of the pipeline (process {holder}) is at work here; try again when it has ended")
        yield
    finally:
        os.close(stage)
