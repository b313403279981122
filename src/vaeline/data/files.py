"""Folders that appear whole or not at all, and arrays written in order."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well and vanishes when it does not.

    It lies beside `folder` under a fixed hidden name, so what a killed process left is cleared by the next one.
    """
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)  # a failed write does not say where
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def npy_file(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write an .npy file of a known shape block after block along its first axis.

    Not through a memory map: on a full disk that is a SIGBUS, here it is an OSError.
    """
    kind = np.dtype(dtype)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda block: _write(file, np.ascontiguousarray(block, dtype=kind))


def _write(file: Any, block: NDArray[Any]) -> None:
    if block.size:
        file.write(block.data.cast("B"))
