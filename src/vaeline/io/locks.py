"""Kernel file locks: released by the kernel however their holder ends."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Lock `path` and return the descriptor that holds the lock, or None where it is taken and `wait` is false."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, mode)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


@contextmanager
def locked(path: Path, report_wait: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Hold the exclusive lock on `path` for the length of the block; yields the descriptor.

    Where another holds it, calls `report_wait`, then waits.
    """
    if (descriptor := acquire(path, wait=False)) is None:
        report_wait()
        descriptor = acquire(path)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def has_path(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is the one that has this path now: it may have been removed or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
