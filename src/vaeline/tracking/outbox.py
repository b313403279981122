"""The spool: an append-only log on the local disk of everything that a run reports.

A folder `.vaeline/spool/<name>/` holds `events.jsonl` (one JSON object a line, appended under a kernel lock, so that
several processes may write), `files/` (pictures and artifacts, named by their content) and `shipped-*.json` (how
many bytes of the log a tracking store already has, written atomically). A torn last line, left by a process that
died while writing, is ignored by readers and cut off by the next writer. Nothing here imports mlflow.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaeline.io.atomic_write import write_all, write_file
from vaeline.io.locks import acquire, locked
from vaeline.io.workspace import Workspace

Event = dict[str, Any]  # kind: start|metrics|image|artifact|tags|resume|end; time: ms since the epoch; ...


def outbox_root(workspace: Workspace) -> Path:
    """`.vaeline/spool/`: one folder a run."""
    return workspace.state / "spool"


@dataclass(frozen=True)
class RunOutbox:
    """One run's log."""

    folder: Path

    @property
    def events(self) -> Path:
        """The log itself."""
        return self.folder / "events.jsonl"

    @property
    def model_digest(self) -> str | None:
        """The digest of the model that this run trained, once it has."""
        try:
            return (self.folder / "model").read_text().strip() or None
        except OSError:
            return None

    def remember_model(self, digest: str) -> None:
        """Join this run to the model that it trained."""
        write_file(self.folder / "model", digest.encode())

    def append(self, kind: str, **fields: Any) -> None:
        """Add one event, stamped with the time. Raises OSError (a full disk)."""
        event: Event = {"kind": kind, "time": int(time.time() * 1000), **fields}
        line = (json.dumps(event, separators=(",", ":")) + "\n").encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _cut_torn_tail(descriptor)
            write_all(descriptor, line)
        finally:
            os.close(descriptor)

    def size(self) -> int:
        """Bytes of the log."""
        try:
            return self.events.stat().st_size
        except FileNotFoundError:
            return 0

    def flush(self) -> None:
        """Have the log survive a power failure. Raises OSError."""
        with suppress(FileNotFoundError), self.events.open("rb") as file:
            os.fsync(file.fileno())

    def read(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Yield every complete event from byte `offset` on, with the offset that follows it."""
        try:
            with self.events.open("rb") as file:
                offset = min(offset, os.fstat(file.fileno()).st_size)
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    offset += len(line)
                    if (event := _parse(line)) is not None:
                        yield event, offset
        except FileNotFoundError:
            return

    def store_file(self, content: bytes, name: str) -> str:
        """Keep a copy of some bytes; returns its path relative to the spool, a folder named by content."""
        path = self.folder / "files" / hashlib.sha256(content).hexdigest()[:32] / name
        if not path.exists():
            write_file(path, content)
        return path.relative_to(self.folder).as_posix()

    def hold_as_writer(self) -> int | None:
        """Say that a process is writing, until the returned descriptor is closed or the process dies."""
        return acquire(self.folder / "writers.lock", shared=True)

    def has_writer(self) -> bool:
        """Whether some living process has the spool open for writing.

        Where none has and a training never said how it ended, it was killed, and the log is told so.
        """
        descriptor = acquire(self.folder / "writers.lock", wait=False)
        if descriptor is None:
            return True
        try:
            if self.status() == "RUNNING":
                self.append("end", status="KILLED")
        finally:
            os.close(descriptor)
        return False

    def is_begun(self) -> bool:
        """Whether its start is told; else its first writer was killed before, and the next tells it."""
        return any(event["kind"] == "start" for event, _ in self.read())

    def status(self) -> str:
        """RUNNING, or how the training last ended: FINISHED, FAILED, KILLED; FINISHED if it was never here."""
        status = "FINISHED"
        for event, _ in self.read():
            match event["kind"]:
                case "start":
                    status = "RUNNING" if event["training"] else "FINISHED"
                case "resume":
                    status = "RUNNING"
                case "end":
                    status = event["status"]
        return status

    def is_sent(self) -> bool:
        """Whether some tracking store has all of it."""
        end = max((offset for _, offset in self.read()), default=0)
        return any(Progress.load(path).offset >= end for path in self.folder.glob("shipped-*.json")) or not end


@dataclass
class Progress:
    """How far a spool has come in one tracking store."""

    path: Path
    offset: int = 0  # bytes of events.jsonl that the store has
    run_id: str | None = None
    made: bool = False  # by this spool; else an existing run was found

    @classmethod
    def of(cls, spool: RunOutbox, uri: str) -> "Progress":
        """A spool's progress in the store at `uri`."""
        return cls.load(spool.folder / f"shipped-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json")

    @classmethod
    def load(cls, path: Path) -> "Progress":
        """Read it; a missing or broken file means that nothing was sent, and sending again does no harm."""
        try:
            return cls(path, **json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return cls(path)

    def write(self) -> None:
        """Write it atomically."""
        content = {"offset": self.offset, "run_id": self.run_id, "made": self.made}
        write_file(self.path, json.dumps(content).encode())


def _parse(line: bytes) -> Event | None:
    """One event; None for a line that a broken disk or an editor spoilt."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event and "time" in event else None


def _cut_torn_tail(descriptor: int) -> None:
    """Cut the log back to its last complete line."""
    size = end = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        chunk = os.pread(descriptor, min(end, 65536), max(0, end - 65536))
        newline = chunk.rfind(b"\n")
        end = end - len(chunk) + newline + 1
    if end < size:
        os.ftruncate(descriptor, end)


def all_outboxes(workspace: Workspace) -> list[RunOutbox]:
    """Every spool of this repository, oldest first."""
    folders = [path.parent for path in outbox_root(workspace).glob("*/events.jsonl")]
    return [RunOutbox(folder) for folder in sorted(folders, key=lambda f: ((f / "events.jsonl").stat().st_mtime, f))]


def find_outbox(workspace: Workspace, model_digest: str) -> RunOutbox | None:
    """The latest run that trained this model, if its spool is still here."""
    found = [spool for spool in all_outboxes(workspace) if spool.model_digest == model_digest]
    return max(found, key=lambda spool: (spool.folder / "model").stat().st_mtime, default=None)


def latest_generation(workspace: Workspace, key: str) -> RunOutbox | None:
    """The newest spool of a training key."""
    pattern = re.compile(rf"{re.escape(key)}-(\d+)")
    found = [(int(m[1]), p) for p in outbox_root(workspace).glob(f"{key}-*") if (m := pattern.fullmatch(p.name))]
    return RunOutbox(max(found)[1]) if found else None


def next_generation(workspace: Workspace, key: str) -> RunOutbox:
    """A spool not yet made, after the newest of a training key."""
    latest = latest_generation(workspace, key)
    number = int(latest.folder.name.rpartition("-")[2]) + 1 if latest else 1
    return RunOutbox(outbox_root(workspace) / f"{key}-{number}")


@contextmanager
def opening(workspace: Workspace) -> Iterator[None]:
    """Hold a lock while looking for a spool and making one where there is none."""
    outbox_root(workspace).mkdir(parents=True, exist_ok=True)
    with locked(outbox_root(workspace) / ".lock"):
        yield


def discard(spool: RunOutbox) -> None:
    """Delete a spool, its log first, so that nothing half-deleted is ever read."""
    spool.events.unlink(missing_ok=True)
    shutil.rmtree(spool.folder, ignore_errors=True)
