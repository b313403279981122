"""Death, a full disk or a signal at the k-th write of a process: put under Python's own calls, from outside.

Every way in which Python code changes files below a folder counts: opening for writing, writing (half of the bytes),
syncing, renaming, truncating, making folders, unlinking; of sqlite, which writes in C, the statements and commits of
the outbox and the commits of SQLAlchemy. What a kill within such a write leaves is tested in test_outbox.py, by a log
that is cut anywhere. Threads and other C libraries are not seen: for those there are the random kills.
"""

import builtins
import errno
import io
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = set("wax+")


@dataclass
class Sabotage:
    """Counts the writes below `root`; at number `at` does what `action` says: kill, full, term or int."""

    root: str
    action: str = "none"
    at: int = -1
    points: list[str] = field(default_factory=list)
    full: bool = False
    unlink: Callable[..., None] = os.unlink

    def reach(self, what: str, path: str, half: Callable[[], object] | None = None, room: bool = True) -> None:
        """A point. `half` does a part of the write; `room`: it needs some on the disk."""
        if not path.startswith(self.root) or "__pycache__" in path:
            return
        self.points.append(f"{what} {os.path.relpath(path, self.root)}")
        if len(self.points) - 1 == self.at:
            if self.action in ("term", "int"):
                os.kill(os.getpid(), signal.SIGTERM if self.action == "term" else signal.SIGINT)
                return
            if half is not None:
                half()
            if self.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.full = self.action == "full"
        if self.full and room:
            if what == "commit":
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """Put it under Python's calls, for the rest of this process."""
        self._paths()
        self._descriptors()
        self._opening()
        self._commits()
        self._outbox()

    def _paths(self) -> None:
        def wrap(name: str, *, after: bool, room: bool) -> None:
            real = getattr(os, name)

            def call(path: Any, *more: Any, **named: Any) -> Any:
                folder = named.get("dir_fd", named.get("src_dir_fd"))
                where = os.fspath(path) if not isinstance(path, int) else _of(path)
                where = os.path.join(_of(folder) if folder is not None else os.getcwd(), where)
                if name == "mkdir" and os.path.isdir(where):
                    return real(path, *more, **named)
                self.reach(name, where, room=room)
                result = real(path, *more, **named)
                if after:
                    self.reach(f"after {name}", where, room=False)
                return result

            setattr(os, name, call)

        wrap("mkdir", after=True, room=True)
        for name in ("replace", "rename"):  # within a folder: no room needed
            wrap(name, after=True, room=False)
        for name in ("unlink", "remove", "rmdir", "truncate"):
            wrap(name, after=False, room=False)

    def _descriptors(self) -> None:
        write, sync, opened, send, unlink = os.write, os.fsync, os.open, os.sendfile, self.unlink

        def os_write(descriptor: int, content: Any) -> int:
            content = memoryview(content)
            self.reach("write", _of(descriptor))
            self.reach("half write", _of(descriptor), lambda: write(descriptor, content[: len(content) // 2]))
            return write(descriptor, content)

        def os_fsync(descriptor: int) -> None:
            self.reach("fsync", _of(descriptor), room=os.path.isfile(_of(descriptor)))
            sync(descriptor)

        def os_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            new = flags & os.O_CREAT and not os.path.exists(path)
            descriptor = opened(path, flags, *more, **named)
            if new:
                try:
                    self.reach("create", _of(descriptor))
                except OSError:  # where there is no room, there is no file
                    os.close(descriptor)
                    unlink(path, **named)
                    raise
            return descriptor

        def os_sendfile(out: int, source: int, offset: int, count: int, *more: Any) -> int:
            self.reach("half copy", _of(out), lambda: send(out, source, offset, 1))
            return send(out, source, offset, count, *more)

        os.write, os.fsync, os.open, os.sendfile = os_write, os_fsync, os_open, os_sendfile  # type: ignore[assignment]

    def _opening(self) -> None:
        real, reach = io.open, self.reach

        class Raw(io.FileIO):
            def write(self, content: Any) -> int | None:
                part = memoryview(content).cast("B")
                reach("half write", str(self.name), lambda: super(Raw, self).write(part[: len(part) // 2]))
                return super().write(content)

        def opening(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
            path = os.path.abspath(os.fspath(file)) if not isinstance(file, int) else ""
            if not WRITING & set(mode) or not path.startswith(self.root) or "opener" in named:
                return real(file, mode, buffering, *more, **named)
            raw = Raw(path, mode.replace("b", "").replace("t", ""))
            reach("open", path)
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            text = {key: value for key, value in named.items() if key in ("encoding", "errors", "newline")}
            return io.TextIOWrapper(buffered, **text)

        io.open = builtins.open = opening  # type: ignore[assignment]

    def _commits(self) -> None:
        from sqlalchemy.engine.default import DefaultDialect

        real = DefaultDialect.do_commit

        def do_commit(dialect: Any, connection: Any) -> None:
            self.reach("commit", f"{self.root}/database")
            real(dialect, connection)
            self.reach("after commit", f"{self.root}/database", room=False)

        DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]

    def _outbox(self) -> None:
        real, reach = sqlite3.connect, self.reach

        class Connection(sqlite3.Connection):
            def __init__(self, path: Any, *more: Any, **named: Any) -> None:
                self.path, new = str(path), not os.path.exists(path)
                super().__init__(path, *more, **named)
                if new:
                    reach("create", self.path)

            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                if statement.startswith(("SELECT", "BEGIN", "ROLLBACK")):
                    return super().execute(statement, *values)
                if self.in_transaction and statement != "COMMIT":
                    reach("half write", self.path, room=False)
                    return super().execute(statement, *values)
                reach("commit", self.path)
                cursor = super().execute(statement, *values)
                reach("after commit", self.path, room=False)
                return cursor

            def executescript(self, script: str) -> sqlite3.Cursor:
                reach("commit", self.path)
                cursor = super().executescript(script)
                reach("after commit", self.path, room=False)
                return cursor

        def connect(path: Any, *more: Any, **named: Any) -> sqlite3.Connection:
            ours = {"factory": Connection} if str(path).endswith("outbox.db") else {}
            return real(path, *more, **named, **ours)

        sqlite3.connect = connect  # type: ignore[assignment]


def _of(descriptor: int) -> str:
    """The path that a descriptor belongs to."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""
