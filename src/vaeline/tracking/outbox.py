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
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
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
        try:
            self._connection = self._connection or self._open()
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL or not shutil.disk_usage(self.folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from None
            raise UserError(f"{self.path}: {error}; where that stays, move it away: a new one is made") from None

    def _open(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):  # a change to WAL mode does not wait for another process's
            connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            connection.executescript(SCHEMA)
        return connection

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
            self._connection.close()
        self._connection = None

    def flush(self) -> None:
        """Have every commit survive a power failure."""
        for path in (self.folder / "outbox.db-wal", self.folder):  # the database itself is synced by sqlite
            if path.exists():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def runs(self, where: str = "true", *values: object) -> list["RunOutbox"]:
        """Runs that a condition selects, oldest first."""
        if not self.path.exists():
            return []
        rows = self.execute(f"SELECT id, key, number, model FROM runs WHERE {where} ORDER BY id", *values)
        return [RunOutbox(self, run, f"{key}-{number}", model) for run, key, number, model in rows]

    def latest(self, column: Literal["key", "model"], value: str) -> "RunOutbox | None":
        """The newest run of a key, or that trained the model of this digest."""
        return next(reversed(self.runs(f"{column} = ?", value)), None)

    def create(self, key: str, model: str | None = None) -> "RunOutbox":
        """A new run of a key, for a transaction that adds its start too; `model`: digest where it is known."""
        number = "(SELECT coalesce(max(number), 0) + 1 FROM runs WHERE key = ?1)"
        insert = f"INSERT INTO runs (key, number, model) VALUES (?1, {number}, ?2) RETURNING id, number"
        ((run, count),) = self.execute(insert, key, model)
        return RunOutbox(self, run, f"{key}-{count}", model)


@dataclass(frozen=True)
class RunOutbox:
    """One run's part of the outbox."""

    outbox: Outbox = field(compare=False, repr=False)
    id: int
    name: str
    model: str | None = field(default=None, compare=False)  # digest of the model that it trained, once it has

    @property
    def log(self) -> Path:
        """Log of its uploader."""
        return self.outbox.folder / f"{self.name}.log"

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
            values = (self.id, kind, int(time.time() * 1000), json.dumps(fields, separators=(",", ":")))
            self.outbox.execute("INSERT INTO events (run, kind, time, fields) VALUES (?, ?, ?, ?)", *values)

    def read(self, after: int = 0, limit: int = -1) -> list[tuple[int, Event]]:
        """Events after a number, with their own numbers; at most `limit` of them."""
        wanted = "SELECT id, kind, time, fields FROM events WHERE run = ? AND id > ? ORDER BY id LIMIT ?"
        rows = self.outbox.execute(wanted, self.id, after, limit)
        return [(number, {"kind": kind, "time": at, **json.loads(fields)}) for number, kind, at, fields in rows]

    def file(self, digest: str) -> bytes:
        """Content of a file."""
        select = "SELECT content FROM files WHERE run = ? AND digest = ?"
        ((content,),) = self.outbox.execute(select, self.id, digest)
        return bytes(content)

    def status(self) -> str:
        """RUNNING, or how the training last ended: FINISHED, FAILED, KILLED; FINISHED where it ran elsewhere."""
        changes = "run = ? AND kind IN ('start', 'resume', 'end') ORDER BY id DESC LIMIT 1"
        for kind, fields in self.outbox.execute(f"SELECT kind, fields FROM events WHERE {changes}", self.id):
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
        wanted = "SELECT event, mlflow_run, created FROM uploads WHERE run = ? AND store = ?"
        for event, run_id, created in self.outbox.execute(wanted, self.id, digest_of(store.encode())):
            return event, run_id, bool(created)
        return 0, None, False

    def set_progress(self, store: str, event: int, mlflow_run: str | None, created: bool) -> None:
        """Record how far a tracking store has the run: after it was sent, never before."""
        values = (self.id, digest_of(store.encode()), event, mlflow_run, created)  # an address may hold a password
        self.outbox.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?)", *values)

    def is_sent(self) -> bool:
        """Whether some tracking store has all of it."""
        last, sent = "SELECT max(id) FROM events WHERE run = ?1", "SELECT max(event) FROM uploads WHERE run = ?1"
        ((all_sent,),) = self.outbox.execute(f"SELECT coalesce(({sent}), 0) >= coalesce(({last}), 0)", self.id)
        return bool(all_sent)

    def prune(self, before: float) -> bool:
        """Delete a run that was sent and not changed since a time, unless a writer or an uploader has it."""
        with self.outbox.transaction():  # in which no writer opens the run
            ((changed,),) = self.outbox.execute("SELECT coalesce(max(time), 0) FROM events WHERE run = ?", self.id)
            locks = [self.hold(role) for role in ("writer", "uploader")]
            prunable = None not in locks and changed < 1000 * before and self.is_sent()
            if prunable:
                self.outbox.execute("DELETE FROM runs WHERE id = ?", self.id)
                for path in self.outbox.folder.glob(f"{self.name}.*"):
                    path.unlink(missing_ok=True)
            for lock in filter(None, locks):
                os.close(lock)
        return prunable


def digest_of(content: bytes) -> str:
    """Name of some bytes in the outbox."""
    return hashlib.sha256(content).hexdigest()[:32]
