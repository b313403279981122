"""Arrays written in order, and arrays larger than memory."""

import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vaeline.io.atomic_write import new_file

Pixels = NDArray[np.uint8]  # [N, C, H, W], most often a memory map

BLOCK, MAPPED = 4 << 20, 16  # bytes handled at once, and rows from anywhere in a file


@contextmanager
def npy_file(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, digest: Any = None
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Writer of an .npy file of a known shape, block after block along its first axis; `digest`, of hashlib, gets it.

    A block is written while its caller makes the next one, so it is not to be changed any more. Not through a memory
    map: on a full disk that is a SIGBUS, here it is an OSError.
    """
    kind, header = np.dtype(dtype), io.BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    with new_file(path) as file, ThreadPoolExecutor(max_workers=1) as thread:

        def append(part: Any) -> None:
            file.write(part)
            if digest is not None:
                digest.update(part)

        last = thread.submit(append, header.getvalue())

        def write(block: NDArray[Any]) -> None:
            nonlocal last
            last.result()
            last = thread.submit(append, np.ascontiguousarray(block, dtype=kind).data)

        yield write
        last.result()


def scratch(shape: tuple[int, ...], folder: Path | None) -> NDArray[np.uint8]:
    """Bytes in memory, or in a nameless file of `folder`, which the system removes. Raises OSError for a full disk."""
    if folder is None:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))  # a full disk is an OSError now, no SIGBUS later
        return np.memmap(file, np.uint8, "r+", shape=shape)


def blocks(array: NDArray[Any], size: int = BLOCK) -> Iterator[slice]:
    """Slices of at most `size` bytes along the first axis; what was read of an array in a file is then released."""
    rows = max(1, size // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)
        _release(array)


def taken(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """`array[rows]`; of an array in a file a few rows are mapped at a time, for each may bring 2 MB of others along."""
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), MAPPED):
        found[start : start + MAPPED] = array[rows[start : start + MAPPED]]
        _release(array)
    return found


def _release(array: NDArray[Any]) -> None:
    """Unmap what was looked at of an array in a file; the system keeps it or reads it again."""
    mapped: Any = array
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, mmap.mmap) and getattr(array, "mode", "c") != "c":  # a private copy would lose its changes
        mapped.madvise(mmap.MADV_DONTNEED)
