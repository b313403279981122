"""One run at a time in a workspace, and no stage of another `dvc repro` beside it."""

import subprocess
import sys
import time
from pathlib import Path

from pipeline.turns import workspace_lock


def test_a_second_run_waits_for_the_first_and_says_so(toy: Path):
    code = "from pipeline.turns import *\nwith workspace_lock(print): print('held', flush=True); input()"
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
    code = "from pipeline.turns import *\nwith workspace_lock(print): print('held', flush=True); input()"
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
