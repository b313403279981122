"""Progress of a long task: a bar on a terminal, log lines elsewhere, both with the time left."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

log = logging.getLogger(__name__)

QUIET_S = 10.0  # seconds at least between two log lines


@contextmanager
def progress(task: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Iterator["Progress"]:
    """Progress reporter of a task of `total` units (of unit "bytes": shown as MB), of which `done` are done already.

    Where standard error is a terminal a bar, which needs rich; else log lines, the first after ten seconds. `quiet`:
    nothing (processes of a group other than rank zero).
    """
    if quiet:
        yield NullProgress(task, total, unit, done)
    elif sys.stderr.isatty() and (bar := _rich_bar()) is not None:
        with bar:
            yield BarProgress(task, total, unit, done, bar)
    else:
        yield Progress(task, total, unit, done)


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress
    except ImportError:
        return None
    columns = ("{task.description}", BarColumn(), "{task.fields[status]}")
    return Progress(*columns, console=Console(stderr=True), transient=True)


class Progress:
    """Reporter by log lines."""

    def __init__(self, task: str, total: int, unit: str, done: int) -> None:
        self.task, self.total, self.unit = task, total, unit
        self._done_before, self._started = done, time.monotonic()
        self._last_line = self._started

    def update(self, done: int, detail: str = "") -> None:
        """Report that `done` of all units are done; `detail` is shown beside them ("31,000 images/s")."""
        if time.monotonic() - self._last_line > QUIET_S:
            self.line(f"{self.task}: {self._status(done, detail)}")

    def line(self, text: str) -> None:
        """Print one line, such as the result of an epoch."""
        self._last_line = time.monotonic()
        log.info("%s", text)

    def _status(self, done: int, detail: str) -> str:
        of = f"{done / 1e6:.1f} of {self.total / 1e6:.1f} MB" if self.unit == "bytes" else (
            f"{done:,} of {self.total:,} {self.unit}"
        )  # fmt: skip
        parts = [of, detail] if detail else [of]
        if done > self._done_before:
            per_unit = (time.monotonic() - self._started) / (done - self._done_before)
            parts.append(f"{timedelta(seconds=round(per_unit * max(self.total - done, 0)))} left")
        return ", ".join(parts)


class BarProgress(Progress):
    """Reporter by rich's bar, with the lines above it."""

    def __init__(self, task: str, total: int, unit: str, done: int, bar: Any) -> None:
        super().__init__(task, total, unit, done)
        self._bar, self._id = bar, bar.add_task(task, total=total, completed=done, status="")

    def update(self, done: int, detail: str = "") -> None:
        """Move the bar."""
        self._bar.update(self._id, completed=done, status=self._status(done, detail))

    def line(self, text: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False)


class NullProgress(Progress):
    """Reporter that prints nothing."""

    def update(self, done: int, detail: str = "") -> None:
        """Do nothing."""

    def line(self, text: str) -> None:
        """Do nothing."""
