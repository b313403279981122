"""Waiting for shippers."""

import os
import time
from collections.abc import Callable

from vaeline.tracking.locks import acquire
from vaeline.tracking.spool import Spool


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def is_free(spool: Spool) -> bool:
    """Whether no shipper follows a spool."""
    descriptor = acquire(spool.folder / "ship.lock", wait=False)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None
