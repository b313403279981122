"""The IDX format of the MNIST family, gzipped or not: unsigned bytes in 1 to 3 dimensions."""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vaeline.errors import UserError

UNSIGNED_BYTE = 0x08
LARGEST_RATIO = 1032  # of deflate: a header that claims more than this times the file is a lie


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of `dimensions` axes: two zero bytes, the type, the count of axes, a big-endian uint32 an axis,
    then exactly the product of these in bytes (http://yann.lecun.com/exdb/mnist).

    Raises UserError naming the file for anything else: wrong magic, truncated, too long, broken gzip, a header
    that claims more than the file can hold.
    """
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            capacity = path.stat().st_size * (LARGEST_RATIO if packed else 1)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            return _parse(path, stream, dimensions, capacity)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: broken gzip: {error}; allowed: a complete IDX file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(path: Path, stream: IO[bytes], dimensions: int, capacity: int) -> NDArray[np.uint8]:
    magic = stream.read(4)
    allowed = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if magic != allowed:
        raise UserError(f"{path}: starts with {magic.hex(' ') or 'nothing'}; allowed: {allowed.hex(' ')} (IDX)")
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise UserError(f"{path}: ends within its header; allowed: {dimensions} sizes of 4 bytes")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    expected = math.prod(shape)
    if expected == 0 or expected > capacity:
        raise UserError(f"{path}: its header claims {_by(shape)} bytes; allowed: 1 to what {capacity} bytes can hold")
    content = stream.read(expected)
    if len(content) < expected or stream.read(1):
        found = f"only {len(content)}" if len(content) < expected else "more"
        raise UserError(f"{path}: holds {found} bytes after its header; allowed: exactly {_by(shape)} = {expected}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
