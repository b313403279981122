"""One run at a time in a workspace, and no stage of another `dvc repro` beside it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.services.workspace_lock import BusyError, stage_turn, workspace_lock
from vaeline.io.run_context import RunContext


def test_a_second_run_waits_for_the_first_and_says_so(toy: Path):
    code = (
        "from pipeline.services.workspace_lock import *\nwith workspace_lock(print): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        said: list[str] = []

        def end_the_first(line: str) -> None:
            said.append(line)
            first.communicate("\n")

        with workspace_lock(end_the_first):
            assert first.poll() == 0
    assert said == [f"another run (process {first.pid}) is at work here: waiting for its end"]


def test_a_killed_run_leaves_the_workspace_free(toy: Path):
    code = (
        "from pipeline.services.workspace_lock import *\nwith workspace_lock(print): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
        first.wait()
    said: list[str] = []
    begun = time.monotonic()
    with workspace_lock(said.append):
        assert time.monotonic() - begun < 5
    assert said == []


HOLD = "from pipeline.services.workspace_lock import *\nwith {}: print('held', flush=True); input()"


@pytest.fixture
def other(request: pytest.FixtureRequest, toy: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds what the parameter says."""
    code = HOLD.format(request.param)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("other", ["workspace_lock(print)", "stage_turn()"], indirect=True)
def test_a_run_that_is_not_to_wait_says_who_is_at_work(other: subprocess.Popen[str]):
    with pytest.raises(BusyError, match=rf"^(another run \(process {other.pid}\)|a stage of a `dvc repro`) is at work"):
        workspace_lock(print, "skip").__enter__()


@pytest.mark.parametrize("other", ["workspace_lock(print)"], indirect=True)
def test_a_stage_works_in_its_own_run_and_in_a_copy_and_is_refused_beside_another_run(
    other: subprocess.Popen[str], toy: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(BusyError, match=rf"a run of the pipeline \(process {other.pid}\) is at work here"):
        stage_turn().__enter__()
    monkeypatch.setenv(*RunContext(run=str(other.pid)).environment().popitem())
    with stage_turn():
        pass
    monkeypatch.delenv("VAELINE_RUN_CONTEXT")
    monkeypatch.setenv("DVC_ROOT", str(toy))
    monkeypatch.chdir(tmp_path_factory.mktemp("experiment"))
    with stage_turn():
        pass


def test_two_stages_of_shells_may_work_at_once_and_none_begins_in_a_run(toy: Path):
    with stage_turn(), stage_turn():
        pass
    with workspace_lock(print) as context, pytest.raises(BusyError), stage_turn():
        pass
    assert context.run == str(os.getpid())
