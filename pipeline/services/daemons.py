"""Processes that stay when the command that started them has ended, and are found and stopped by a later one.

Each is noted in `.vaeline/NAME.json`: its process (number and start, so that a number used again is never taken for
it) and its address. All it starts carry a mark in their environment, by which what a killed daemon left is found.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.services.child_processes import Identity, Process, members, spawn, stop_group
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import state_folder

MARK = "VAELINE_DAEMON"


@dataclass(frozen=True)
class Daemon:
    """A noted process; `address` is the URL at which it answers, or which it works for."""

    name: str
    pid: int
    started: str
    address: str

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        return Identity(self.pid, self.started).lives()

    def end(self, patience: float) -> bool:
        """Stop it and all that it started and left in its group; whether there was anything to stop."""
        found = self.lives or bool(members(self.pid, _mark(self.name)))
        if found:
            stop_group(self.pid, patience)
        _note(self.name).unlink(missing_ok=True)
        return found


def start(name: str, command: Sequence[str], env: Mapping[str, str], address: str, cwd: Path) -> Process:
    """Start a daemon in a session of its own, its output in `.vaeline/NAME.log`, what that held in `.log.old`."""
    log = log_of(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.old"))
    mark, value = _mark(name)
    with log.open("w") as output:
        process = spawn(command, {**os.environ, **env, mark: value}, output, cwd=cwd, orphaned=None)
    identity = Identity.of(process.pid)
    content = asdict(Daemon(name, process.pid, identity.started if identity else "", address))
    write_file(_note(name), json.dumps(content, indent=2).encode())
    return process


def find(name: str) -> Daemon | None:
    """The daemon last started under this name, whether or not it still runs."""
    try:
        return Daemon(**json.loads(_note(name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def running(name: str) -> Daemon | None:
    """The daemon of this name that runs."""
    found = find(name)
    return found if found and found.lives else None


def log_of(name: str) -> Path:
    """Where a daemon's output is."""
    return state_folder() / f"{name}.log"


def _note(name: str) -> Path:
    return state_folder() / f"{name}.json"


def _mark(name: str) -> tuple[str, str]:
    return MARK, f"{state_folder().absolute()}/{name}"
