"""Bytes into `data/raw`, checked against their pinned size and SHA-256 as they arrive."""

import gzip
import hashlib
import http.client
import queue
import threading
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vaeline.data.sources.catalogue import Item
from vaeline.io.atomic_write import new_file

OPENING_SECONDS = 6.0  # for the name lookup, the connection and the first byte together
STALLED_SECONDS = 20.0  # without a byte
BLOCK = 1 << 20


class UnavailableError(Exception):
    """A way to a data set that is not open here, or that gave wrong bytes; the next way is tried."""


def store(
    source: IO[bytes], item: Item, folder: Path, *, packed: bool, report: Callable[[int], object] = lambda size: None
) -> None:
    """Write `source` as `folder/item.name`, taking off a gzip where it is `packed`.

    Raises UnavailableError where the source breaks off or its bytes are not the pinned ones, OSError where they
    cannot be written.
    """
    stream: IO[bytes] = gzip.GzipFile(fileobj=source) if packed else source  # type: ignore[assignment]
    digest, size = hashlib.sha256(), 0
    with new_file(folder / item.name) as target:
        while block := _read(stream, item):
            target.write(block)
            digest.update(block)
            size += len(block)
            report(size)
            if size > item.size:
                raise UnavailableError(f"{item.name}: more than the {item.size} bytes expected")
    if size != item.size:
        raise UnavailableError(f"{item.name}: ends after {size} of {item.size} bytes")
    if digest.hexdigest() != item.sha256:
        raise UnavailableError(f"{item.name}: SHA-256 is {digest.hexdigest()}, pinned is {item.sha256}")


def _read(stream: IO[bytes], item: Item) -> bytes:
    try:
        return stream.read(BLOCK)
    except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
        raise UnavailableError(f"{item.name}: {_reason(error)}") from None


def open_url(url: str) -> IO[bytes]:
    """Open `url`, honouring the proxy variables; raises UnavailableError where there is no answer in time.

    It waits in a thread, because no socket timeout covers a name lookup that hangs.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "vaeline"})
    answers: queue.SimpleQueue[IO[bytes] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALLED_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=OPENING_SECONDS)
    except queue.Empty:
        raise UnavailableError(f"no answer in {OPENING_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise UnavailableError(_reason(answer))
    return answer


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__
