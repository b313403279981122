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

    A bar where standard error is a terminal, else log lines, the first after ten seconds. `quiet`: nothing (processes
    of a group other than rank zero).
    """
    if quiet or not sys.stderr.isatty():
        yield Progress(task, total, unit, done, quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), "{task.fields[status]}")
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(task, total, unit, done, quiet, bar)


class Progress:
    """Reporter by a bar with the lines above it, by log lines, or by nothing."""

    def __init__(self, task: str, total: int, unit: str, done: int, quiet: bool, bar: Any = None) -> None:
        self.task, self.total, self.unit, self.quiet, self._bar = task, total, unit, quiet, bar
        self._done_before, self._started = done, time.monotonic()
        self._last_line = self._started
        self._id = bar and bar.add_task(task, total=total, completed=done, status="")

    def update(self, done: int, detail: str = "") -> None:
        """Report that `done` of all units are done; `detail` is shown beside them ("31,000 images/s")."""
        if self._bar:
            self._bar.update(self._id, completed=done, status=self._status(done, detail))
        elif time.monotonic() - self._last_line > QUIET_S:
            self.line(f"{self.task}: {self._status(done, detail)}")

    def line(self, text: str) -> None:
        """Print one line, such as the result of an epoch."""
        self._last_line = time.monotonic()
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            log.info("%s", text)

    def _status(self, done: int, detail: str) -> str:
        if self.unit == "bytes":
            parts = [f"{done / 1e6:.1f} of {self.total / 1e6:.1f} MB"]
        else:
            parts = [f"{done:,} of {self.total:,} {self.unit}"]
        if detail:
            parts.append(detail)
        if done > self._done_before:
            per_unit = (time.monotonic() - self._started) / (done - self._done_before)
            parts.append(f"{timedelta(seconds=round(per_unit * max(self.total - done, 0)))} left")
        return ", ".join(parts)
