"""Writing files and folders so that a crash leaves the old content or the new one, never a part."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, sync, rename, sync the folder (made where it is missing).

    The part beside a file has one name and a kernel lock: writers of the same file wait for each other, and what a
    killed one left is taken over by the next. Raises OSError, naming the file (a full disk); then the old content
    stays and nothing is left beside it.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: where there is no room for all of them, all old ones stay."""
    try:
        with ExitStack() as stack:
            parts = {}
            for path, content in files.items():
                with _named(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    parts[path] = stack.enter_context(_part_with(path, content))
            _put_in_place(parts)
    except BaseException:
        for path in files:
            _drop_free(_part_of(path))
        raise


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of these files, which takes the place of the one that was there; whole or not at all."""
    with replaced(folder) as new:
        for name, content in files.items():
            with new_file(new / name) as file:
                file.write(content)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well and vanishes when it does not.

    It lies beside `folder` under a fixed hidden name, so what a killed process left is cleared by the next one. The
    caller alone writes the folder.
    """
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    _put_back(old, folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with _named(folder):
        new.mkdir(parents=True)
        try:
            yield new
            sync_folder(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            _put_back(old, folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file written as its content comes, for a folder that is not in place yet; synced when the block ends well."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_all(descriptor: int, content: bytes) -> None:
    """All of the content: the kernel may take less at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_parts(folder: Path) -> None:
    """Remove what killed writers left in a folder that the caller alone writes to."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def _part_with(path: Path, content: bytes) -> Iterator[Path]:
    """The part beside a file, written and synced, its lock held for the block."""
    part = _part_of(path)
    while True:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not is_still(part, descriptor):  # its last writer has put it in place, or removed it
                continue
            os.truncate(descriptor, 0)
            write_all(descriptor, content)
            os.fsync(descriptor)
            yield part
            return
        finally:
            os.close(descriptor)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _drop_free(part: Path) -> None:
    """Remove a part unless a writer has it: an interrupt may come before the lock is taken, or after it is left."""
    with suppress(OSError):
        descriptor = os.open(part, os.O_WRONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still(part, descriptor):
                part.unlink()
        finally:
            os.close(descriptor)


def _put_in_place(parts: Mapping[Path, Path]) -> None:
    """Rename each part to its file; Ctrl-C or SIGTERM meanwhile waits for the last of them."""
    waiting = list(parts.items())
    try:
        while waiting:
            path, part = waiting[0]
            with _named(path):
                part.replace(path)
            del waiting[0]
    except (KeyboardInterrupt, SystemExit):
        for path, part in waiting:
            with suppress(FileNotFoundError):
                part.replace(path)
        raise
    for folder in {path.parent for path in parts}:
        sync_folder(folder)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether the file or folder behind a descriptor is the one that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _put_back(old: Path, folder: Path) -> None:
    """Undo the first of two renames, where the second never came."""
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failed write does not say where: add it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
