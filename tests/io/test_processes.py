import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from vaeline.io.npy import scratch
from vaeline.io.processes import share_among_processes


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = psutil.Process().children()  # servers of other tests
    yield
    assert psutil.Process().children() == before


def nothing(_: int) -> None:
    """What was reported is not looked at."""


@pytest.mark.parametrize(("count", "processes", "used"), [(10, 3, 3), (2, 5, 2), (7, 1, 1), (5, 4, 3)])
def test_each_index_is_worked_on_once_by_as_many_processes(tmp_path: Path, count: int, processes: int, used: int):
    done, reports = scratch((count, 5), tmp_path), list[int]()

    def work(index: int) -> None:
        done[index - 100, 0] += 1
        done[index - 100, 1:] = np.frombuffer(os.getpid().to_bytes(4), np.uint8)

    share_among_processes(work, range(100, 100 + count), processes, reports.append)
    assert done[:, 0].tolist() == [1] * count
    assert len(np.unique(done[:, 1:], axis=0)) == used
    assert reports == sorted(reports) and reports[-1] == 100 + count


def test_the_error_of_the_lowest_index_is_raised_and_all_processes_have_ended(capfd: pytest.CaptureFixture[str]):
    for bad in ({4, 9, 3}, {7, 9}):

        def work(index: int, bad: set[int] = bad) -> None:
            if index in bad:
                raise ValueError(index)
            time.sleep(0.01)

        with pytest.raises(ValueError, match=str(min(bad))):
            share_among_processes(work, range(10), 3, nothing)
    assert capfd.readouterr() == ("", "")


def test_a_part_whose_process_was_killed_is_done_again(tmp_path: Path):
    done, here = scratch((6,), tmp_path), os.getpid()

    def work(index: int) -> None:
        if index == 4 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        done[index] += 1

    share_among_processes(work, range(6), 2, nothing)
    assert done.tolist() == [1, 1, 1, 2, 1, 1]


PROGRAM = """
import os, sys, time
from vaeline.command.program import run_program
from vaeline.io.processes import share_among_processes

def work(index):
    os.write(1, f"{index}\\n".encode())
    time.sleep(float(sys.argv[1]))

run_program(lambda: share_among_processes(work, range(8), 2, print))
"""


def at_work(seconds: float) -> subprocess.Popen[str]:
    """A program with a process more, both at their first index."""
    command, pipe = [sys.executable, "-c", PROGRAM, str(seconds)], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"0\n", "4\n"}
    return process


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "interrupted\n")])
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # by an operator, by a terminal
def test_a_signal_ends_all_of_them(send: Callable[[int, int], None], number: int, code: int, said: str):
    process = at_work(600)
    send(process.pid, number)
    assert process.communicate(timeout=30)[1] == said  # its other end is closed: no process has the pipe any more
    assert process.returncode == code


def test_where_their_parent_is_killed_they_end_after_their_index():
    process = at_work(1)
    process.kill()
    said, errors = process.communicate(timeout=30)
    assert (said, errors) == ("", "")
