"""One run at a time in a workspace, and no stage of another `dvc repro` beside it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.services.workspace_lock import BusyError, stage_lock, workspace_lock
from vaeline.io.workspace import RunContext, Workspace, current_workspace

HOLD = """
from pipeline.services.workspace_lock import *
with {}: print('held', flush=True); input()
"""
RUN, STAGE = "workspace_lock(Workspace(), print)", "stage_lock(Workspace())"
HERE = Workspace()


@pytest.fixture(params=[RUN, STAGE])
def other(request: pytest.FixtureRequest, toy: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock which the parameter names."""
    command = [sys.executable, "-c", HOLD.format(request.param)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_names_what_is_at_work_and_waits_for_its_end(other: subprocess.Popen[str], killed: bool):
    what = rf"(another run \(process {other.pid}\)|a stage of a `dvc repro`) is at work here"
    with pytest.raises(BusyError, match=f"^{what}$"):
        workspace_lock(HERE, print, "skip").__enter__()
    lines: list[str] = []

    def end_the_other(line: str) -> None:
        lines.append(line)
        if killed:
            other.kill()
        other.communicate("\n")

    with workspace_lock(HERE, end_the_other):
        assert other.poll() is not None
    assert len(lines) == 1
    assert re.fullmatch(f"{what}: waiting for its end", lines[0])


@pytest.mark.parametrize("other", [RUN], indirect=True)
def test_a_stage_works_in_its_own_run_and_in_a_copy_and_is_refused_beside_another_run(
    other: subprocess.Popen[str], toy: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 22: two at once."""
    with pytest.raises(BusyError, match=rf"a run of the pipeline \(process {other.pid}\) is at work here"):
        stage_lock(HERE).__enter__()
    monkeypatch.setenv(*RunContext(run=str(other.pid)).environment().popitem())
    with stage_lock(HERE):
        pass
    monkeypatch.delenv("VAELINE_RUN_CONTEXT")
    monkeypatch.setenv("DVC_ROOT", str(toy))
    monkeypatch.chdir(tmp_path_factory.mktemp("experiment"))
    with stage_lock(current_workspace()):
        pass


def test_two_stages_of_shells_may_work_at_once_and_none_begins_in_a_run(toy: Path):
    with stage_lock(HERE), stage_lock(HERE):
        pass
    with workspace_lock(HERE, print) as context, pytest.raises(BusyError), stage_lock(HERE):
        pass
    assert context.run == str(os.getpid())
