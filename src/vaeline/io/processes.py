"""One task shared among processes, for work in which threads wait for Python's lock."""

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress

ENDING = (signal.SIGINT, signal.SIGTERM)


def share_among_processes(
    work: Callable[[int], object], indices: range, processes: int, report: Callable[[int], object]
) -> None:
    """Call `work` with each index: of the first part of them here, of every other part in a process forked for it.

    Its results must lie in shared memory, as `scratch` of a folder does. A part whose process did not succeed, or was
    killed, is done again here: so errors are raised here, that of the lowest index. No process outlives this one or
    the call. `report` gets the end of what is done by now, more or less. Not for programs with threads that hold locks
    which `work` needs.
    """
    step = -(-len(indices) // processes)
    own, *others = [indices[start : start + step] for start in range(0, len(indices), step)]
    running: dict[int, range] = {}
    try:
        for part in others:
            running[_forked(work, part)] = part
        for done, index in enumerate(own, 1):
            work(index)
            report(indices.start + min(done * processes, len(indices)))
        for pid, part in tuple(running.items()):
            failed = os.waitpid(pid, 0)[1]
            del running[pid]
            for index in part if failed else ():
                work(index)
    finally:
        for pid in running:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _forked(work: Callable[[int], object], part: range) -> int:
    """Start the process of a part; returns its id. It says nothing, and ends with its parent."""
    parent, held = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with warnings.catch_warnings():  # of threads, from Python 3.12 on
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid
        try:
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            for index in part:
                if os.getppid() != parent:
                    break
                work(index)
            else:
                os._exit(0)
        finally:
            os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
