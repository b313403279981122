"""Files of a pinned size and SHA-256, checked as they are written."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import IO, Any

from vaeline.data.sources.catalogue import Item
from vaeline.errors import UserError
from vaeline.io.atomic_write import new_file
from vaeline.io.digests import file_digest

BLOCK = 1 << 20


class UnavailableError(Exception):
    """A source that cannot be reached here, or that gave wrong bytes; the next one is tried."""


def store(source: Any, item: Item, folder: Path) -> None:
    """Write `source` as `folder/item.name`, without the gzip around it where the item is unpacked.

    Raises UnavailableError where the source breaks off or its bytes are not the pinned ones, OSError where they
    cannot be written.
    """
    unpack = item.unpacked and source.peek(2)[:2] == b"\x1f\x8b"
    stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=source) if unpack else source
    digest, size = hashlib.sha256(), 0
    with new_file(folder / item.name) as target:
        while block := _read(stream, item):
            target.write(block)
            digest.update(block)
            size += len(block)
            if size > item.size:
                raise UnavailableError(f"{item.name}: more than the {item.size} bytes expected")
    if size != item.size:
        raise UnavailableError(f"{item.name}: ends after {size} of {item.size} bytes")
    if digest.hexdigest() != item.sha256:
        raise UnavailableError(f"{item.name}: SHA-256 is {digest.hexdigest()}, pinned is {item.sha256}")


def check_digest(folder: Path, item: Item) -> None:
    """Raise UserError unless the file is in the folder with its pinned SHA-256."""
    path = folder / item.name
    if not path.is_file():
        raise UserError(f"{path}: is missing; run the stage fetch again")
    found = file_digest(path)
    if found != item.sha256:
        raise UserError(f"{path}: SHA-256 is {found}; allowed: {item.sha256}; run the stage fetch again")


def _read(stream: IO[bytes] | gzip.GzipFile, item: Item) -> bytes:
    try:
        return stream.read(BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise UnavailableError(f"{item.name}: {error}") from None
