"""Child processes that do not outlive their parent: a killed parent leaves nothing running behind it.

Run as a program, `python -m pipeline.services.child_processes PARENT SIGNAL COMMAND...` becomes COMMAND, which gets
the signal when its parent ends.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Process = subprocess.Popen[str]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
DETOUR = (sys.executable, "-m", "pipeline.services.child_processes")


@dataclass(frozen=True)
class Identity:
    """One process for good: a number is used again, never together with the moment at which its process started."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The process with this number now; None where there is none, or only a zombie."""
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else cls(pid, _start(process))
        except psutil.NoSuchProcess:
            return None

    def lives(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self


def _start(process: Any) -> str:
    """When a process started. On Linux in ticks since a boot: a clock that is set does not change them."""
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return f"{boot}:{fields[19]}"


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when its parent ends; end at once where that has happened already.

    `parent` is the parent's process id. Elsewhere than on Linux only the latter.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def spawn(
    command: Sequence[str],
    env: Mapping[str, str],
    output: int | IO[str] = subprocess.PIPE,
    cwd: Path | None = None,
    orphaned: signal.Signals | None = signal.SIGTERM,
) -> Process:
    """Start a command as leader of its own session and process group, its whole output on one pipe or file.

    `orphaned` is the signal it gets when its parent ends, None to outlive it. A detour through this module asks for
    it: code between fork and exec would be unsafe in a process with threads.
    """
    return subprocess.Popen(
        [*([] if orphaned is None else [*DETOUR, str(os.getpid()), str(int(orphaned))]), *command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def stop(process: Process, patience: float = 10.0) -> None:
    """End a spawned command and everything in its group: SIGTERM, and SIGKILL after `patience` seconds."""
    stop_group(process.pid, patience, process.poll)
    process.wait()  # reap it: DVC takes a zombie for a living owner of its locks


def stop_group(group: int, patience: float = 10.0, reap: Callable[[], object] = lambda: None) -> None:
    """SIGTERM to all members of a group, and after `patience` seconds SIGKILL; returns when none is left."""
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while members(group):
        reap()
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
        time.sleep(0.05)


def _signal_group(group: int, number: int) -> None:
    """Signal a group, whose id stays taken as long as it has members."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def members(group: int, mark: tuple[str, str] | None = None) -> list[int]:
    """Who belongs to a group (and has this variable in its environment), zombies waiting for a reaper left out."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) != group or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if mark is None or process.environ().get(mark[0]) == mark[1]:
                found.append(process.pid)
    return found


def listens(group: int, port: int) -> bool:
    """Whether a member of the group is who answers at this port."""
    import psutil

    for pid in members(group):
        with suppress(psutil.Error):
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execvp(sys.argv[3], sys.argv[3:])
