"""How far a long transfer is: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

Advance = Callable[[int], None]
WORTH_SHOWING = 1_000_000  # bytes


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Yield `advance(bytes)`; shows what share of `total` bytes is done. Small transfers show nothing."""
    if total < WORTH_SHOWING:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _lines(what, total)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int) -> Advance:
    """A line at every quarter."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = 4 * done // total, done + count
        if 4 * done // total > before:
            log.info("%s: %d %% of %.1f MB", what, 100 * done // total, total / 1e6)

    return advance
