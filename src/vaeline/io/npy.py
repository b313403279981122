"""Arrays written in order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vaeline.io.atomic_write import new_file


@contextmanager
def npy_file(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Writer of an .npy file of a known shape, block after block along its first axis.

    Not through a memory map: on a full disk that is a SIGBUS, here it is an OSError.
    """
    kind = np.dtype(dtype)
    with new_file(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda block: file.write(np.ascontiguousarray(block, dtype=kind).tobytes())
