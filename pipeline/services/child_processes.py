"""Child processes that end with their parent, and records by which a later command finds those that do not.

As a program, `python -m pipeline.services.child_processes PARENT SIGNAL COMMAND...` becomes COMMAND, which gets the
signal when its parent ends.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json, read_bounded
from vaeline.io.workspace import VARIABLE

Process = subprocess.Popen[str]
MOST_BYTES = 10_000  # of a record
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
DETOUR = (sys.executable, "-m", "pipeline.services.child_processes")  # then PARENT SIGNAL COMMAND...


@dataclass(frozen=True)
class ProcessRecord:
    """A process, kept in a JSON file. `started` distinguishes it from a later process with its pid."""

    pid: int
    started: str
    parent: int = 0  # process that it is not to outlive; 0: none
    address: str = ""  # URL at which it answers, or of the server that it works for

    @classmethod
    def of(cls, pid: int, *, parent: int = 0, address: str = "") -> "ProcessRecord":
        """The record of the process with this number now."""
        return cls(pid, _started(pid), parent, address)

    @classmethod
    def read(cls, path: Path) -> "ProcessRecord | None":
        """The record in a file; None where there is none, or a spoilt one."""
        try:
            return cls(**parse_json(read_bounded(path, MOST_BYTES), str(path)))
        except (UserError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        from vaeline.io.atomic_write import write_file

        write_file(path, json.dumps(asdict(self)).encode())

    @property
    def lives(self) -> bool:
        """Whether this very process still runs, a zombie not counted."""
        return bool(self.started) and _started(self.pid) == self.started

    @property
    def orphaned(self) -> bool:
        """Whether its parent has ended."""
        with suppress(psutil.NoSuchProcess):
            return bool(self.parent) and psutil.Process(self.pid).ppid() != self.parent
        return True


def _started(pid: int) -> str:
    """When a living process started; empty where there is none. On Linux in ticks since a boot, whatever the clock."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if sys.platform != "linux":
            return f"{process.create_time():.2f}"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when its parent, of process id `parent`, ends.

    Exits where that has happened already; elsewhere than on Linux that is all.
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

    `orphaned` is the signal it gets when its parent ends, None to outlive it. It is asked for by this module as a
    program: code between fork and exec would be unsafe in a process with threads.
    """
    detour = [] if orphaned is None else [*DETOUR, str(os.getpid()), str(int(orphaned))]
    return subprocess.Popen(
        [*detour, *command],
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
    deadline = time.monotonic() + patience
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while any(members(group)):
            reap()
            if time.monotonic() > deadline:
                os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)


def members(group: int) -> Iterator[psutil.Process]:
    """The members of a process group, zombies left out."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def serves(pid: int, record: Path) -> bool:
    """Whether a process belongs to the service of this record, or of the one that this was before its folder moved.

    A copy of a repository has records of the services of the original.
    """
    with suppress(psutil.Error, ValueError):
        named = json.loads(psutil.Process(pid).environ().get(VARIABLE, "{}")).get("service")
        return named is not None and (named == str(record) or not Path(named).exists())
    return False


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execvp(sys.argv[3], sys.argv[3:])
