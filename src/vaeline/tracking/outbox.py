"""Outbox: a sqlite database on the local disk that holds what runs report until the uploader has sent it.

`.vaeline/outbox/outbox.db`, in WAL mode, holds runs, their events, their files (pictures, artifacts) and how far each
tracking store has them. A commit outlives the process that made it; `flush` makes it outlive a power failure. Beside
the database lie each run's kernel locks and the log of its uploader. Nothing here imports mlflow.
"""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vaeline.errors import UserError
from vaeline.io.locks import acquire, locked
from vaeline.io.workspace import Workspace

Event = dict[str, Any]  # kind: start|metrics|image|artifact|tags|resume|end; time: ms since the epoch; ...
WAIT_S = 30.0  # for another process's commit
SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, number INTEGER, model TEXT);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    kind TEXT NOT NULL, time INTEGER NOT NULL, fields TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run, id);
CREATE TABLE IF NOT EXISTS files (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, digest TEXT, content BLOB, PRIMARY KEY (run, digest));
CREATE TABLE IF NOT EXISTS uploads (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, store TEXT, event INTEGER, mlflow_run TEXT,
    created INTEGER, PRIMARY KEY (run, store));
COMMIT;
"""


class Outbox:
    """The database of a repository, opened at its first use.

    Everything here raises OSError where the disk is full, UserError where the database cannot be used.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.state.absolute() / "outbox"
        self.path = self.folder / "outbox.db"
        self._connection: sqlite3.Connection | None = None

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of one statement, which outside of a transaction is one of its own."""
        with self._clear_errors():
            self._connection = self._connection or self._open()
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements of the block or none, while no other process writes; blocks may be nested."""
        if self._connection is not None and self._connection.in_transaction:
            yield
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            with self._clear_errors():
                self._connection.close()
        self._connection = None

    def flush(self) -> None:
        """Have every commit survive a power failure."""
        for path in (self.folder / "outbox.db-wal", self.folder):  # the database itself is synced by sqlite
            if path.exists():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def runs(self, where: str = "true", *values: object) -> list["RunOutbox"]:
        """Runs that a condition selects, oldest first."""
        if not self.path.exists():
            return []
        rows = self.execute(f"SELECT id, key, number FROM runs WHERE {where} ORDER BY id", *values)
        return [RunOutbox(self, run, f"{key}-{number}") for run, key, number in rows]

    def latest(self, column: Literal["key", "model"], value: str) -> "RunOutbox | None":
        """The newest run of a key, or that trained the model of this digest."""
        return next(reversed(self.runs(f"{column} = ?", value)), None)

    def create(self, key: str, model: str | None = None) -> "RunOutbox":
        """A new run of a key, for a transaction that adds its start too; `model`: digest where it is known."""
        ((number,),) = self.execute("SELECT coalesce(max(number), 0) + 1 FROM runs WHERE key = ?", key)
        values = (key, number, model)
        ((run,),) = self.execute("INSERT INTO runs (key, number, model) VALUES (?, ?, ?) RETURNING id", *values)
        return RunOutbox(self, run, f"{key}-{number}")

    def _open(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):  # a change to WAL mode does not wait for another process's
            connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {setting}")
            connection.executescript(SCHEMA)
        return connection

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL or not shutil.disk_usage(self.folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from None
            raise UserError(f"{self.path}: {error}; where that stays, move it away: a new one is made") from None


@dataclass(frozen=True)
class RunOutbox:
    """One run's part of the outbox."""

    outbox: Outbox = field(compare=False, repr=False)
    id: int
    name: str

    @property
    def log(self) -> Path:
        """Log of its uploader."""
        return self.outbox.folder / f"{self.name}.log"

    @property
    def model(self) -> str | None:
        """Digest of the model that it trained, once it has."""
        return next((digest for (digest,) in self._select("model FROM runs WHERE id = ?")), None)

    def set_model(self, digest: str) -> None:
        """Join the run to the model that it trained, here and in the tracking store."""
        with self.outbox.transaction():
            self.append("tags", values={"vaeline.model_digest": digest})
            self.outbox.execute("UPDATE runs SET model = ? WHERE id = ?", digest, self.id)

    def append(self, kind: str, content: bytes | None = None, **fields: Any) -> None:
        """Add one event, stamped with the time, together with its file if it has one (field `digest`)."""
        with self.outbox.transaction():
            if content is not None:
                fields["digest"] = digest_of(content)
                self.outbox.execute("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", self.id, fields["digest"], content)
            text = json.dumps(fields, separators=(",", ":"))
            values = (self.id, kind, int(time.time() * 1000), text)
            self.outbox.execute("INSERT INTO events (run, kind, time, fields) VALUES (?, ?, ?, ?)", *values)

    def read(self, after: int = 0, limit: int = -1) -> list[tuple[int, Event]]:
        """Events after a number, with their own numbers; at most `limit` of them."""
        wanted = "id, kind, time, fields FROM events WHERE run = ? AND id > ? ORDER BY id LIMIT ?"
        rows = self._select(wanted, after, limit)
        return [(number, {"kind": kind, "time": at, **json.loads(fields)}) for number, kind, at, fields in rows]

    def file(self, digest: str) -> bytes:
        """Content of a file. Raises ValueError where there is none."""
        for (content,) in self._select("content FROM files WHERE run = ? AND digest = ?", digest):
            return bytes(content)
        raise ValueError(f"{self.name}: no file {digest}")

    def status(self) -> str:
        """RUNNING, or how the training last ended: FINISHED, FAILED, KILLED; FINISHED where it ran elsewhere."""
        changes = "kind, fields FROM events WHERE run = ? AND kind IN ('start', 'resume', 'end')"
        for kind, fields in self._select(f"{changes} ORDER BY id DESC LIMIT 1"):
            event = json.loads(fields)
            return str(event["status"]) if kind == "end" else "RUNNING" if event.get("training", True) else "FINISHED"
        return "FINISHED"

    def hold(self, role: str, *, shared: bool = False, wait: bool = False) -> int | None:
        """Lock of a `writer` or an `uploader`, held until the descriptor is closed; None where it is taken."""
        return acquire(self.outbox.folder / f"{self.name}.{role}.lock", shared=shared, wait=wait)

    def has_writer(self) -> bool:
        """Whether a living process writes the run; where none does and its end is missing, adds that it was killed."""
        if (probe := self.hold("writer")) is None:
            return True
        os.close(probe)
        with self.outbox.transaction():  # in which no writer opens the run
            if (lock := self.hold("writer")) is None:
                return True
            os.close(lock)
            if self.status() == "RUNNING":
                self.append("end", status="KILLED")
        return False

    def progress(self, store: str) -> tuple[int, str | None, bool]:
        """Of a tracking store: number of the last event it has, its run's id, whether that was created for this run."""
        wanted = "event, mlflow_run, created FROM uploads WHERE run = ? AND store = ?"
        for event, run_id, created in self._select(wanted, digest_of(store.encode())):
            return event, run_id, bool(created)
        return 0, None, False

    def set_progress(self, store: str, event: int, mlflow_run: str | None, created: bool) -> None:
        """Record how far a tracking store has the run: after it was sent, never before."""
        values = (self.id, digest_of(store.encode()), event, mlflow_run, created)  # an address may hold a password
        self.outbox.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?)", *values)

    def is_sent(self) -> bool:
        """Whether some tracking store has all of it."""
        ((last,),) = self._select("coalesce(max(id), 0) FROM events WHERE run = ?")
        ((sent,),) = self._select("coalesce(max(event), 0) FROM uploads WHERE run = ?")
        return bool(sent >= last)

    def prune(self, before: float) -> bool:
        """Delete a run that was sent and not changed since a time, unless a writer or an uploader has it."""
        with self.outbox.transaction():  # in which no writer opens the run
            ((changed,),) = self._select("coalesce(max(time), 0) FROM events WHERE run = ?")
            locks = [self.hold(role) for role in ("writer", "uploader")]
            prunable = None not in locks and changed < 1000 * before and self.is_sent()
            if prunable:
                self.outbox.execute("DELETE FROM runs WHERE id = ?", self.id)
                for path in self.outbox.folder.glob(f"{self.name}.*"):
                    path.unlink(missing_ok=True)
            for lock in filter(None, locks):
                os.close(lock)
        return prunable

    def _select(self, rest: str, *values: object) -> list[tuple[Any, ...]]:
        return self.outbox.execute(f"SELECT {rest}", self.id, *values)


def digest_of(content: bytes) -> str:
    """Name of some bytes in the outbox."""
    return hashlib.sha256(content).hexdigest()[:32]
