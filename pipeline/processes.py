"""Child processes that do not outlive their parent: a killed parent leaves nothing running behind it.

Run as a program, `python -m pipeline.processes PARENT COMMAND...` becomes COMMAND, to be killed with its parent.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

Process = subprocess.Popen[str]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when its parent ends; end at once where that has happened already.

    `parent` is the parent's process id. Elsewhere than on Linux only the latter.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def spawn(command: Sequence[str], env: Mapping[str, str], output: int | IO[str] = subprocess.PIPE) -> Process:
    """Start a command as leader of its own process group, its whole output on one pipe or file.

    The detour through this module sets the parent-death signal without code between fork and exec, which
    is unsafe in a process with threads.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.processes", str(os.getpid()), *command],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def stop(process: Process, patience: float = 10.0) -> None:
    """End a spawned command and everything in its group: SIGTERM, and SIGKILL after `patience` seconds."""
    if not _signal_group(process, signal.SIGTERM):
        return
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        process.poll()
        if not _group_lives(process.pid):
            process.wait()  # reap it: DVC takes a zombie for a living owner of its locks
            return
        time.sleep(0.05)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: Process, number: int) -> bool:
    """Signal the group, whose id stays taken as long as it has members; False where none is left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _group_lives(group: int) -> bool:
    """Whether the group has a member that is more than a zombie waiting for a reaper."""
    import psutil

    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.Error):
            continue
    return False


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
