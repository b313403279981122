"""Progress of a long task: a bar on a terminal, log lines elsewhere, both with the time left."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Self

log = logging.getLogger(__name__)

QUIET_S = 10.0  # seconds at least between two log lines


@contextmanager
def heartbeat(task: str) -> Iterator[None]:
    """Log how long a task has been at work whenever no progress was reported for ten seconds."""
    started, ended = time.monotonic(), threading.Event()

    def beat() -> None:
        last = started
        while not ended.wait(QUIET_S / 10):
            last, now = max(last, Progress.reported), time.monotonic()
            if now - last > QUIET_S:
                log.info("%s: at work for %s", task, timedelta(seconds=round(now - started)))
                last = now

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Progress(ExitStack):
    """Progress reporter of a task of `total` units (of unit "bytes": shown as MB), of which `done` are done already.

    A bar where standard error is a terminal, else log lines, the first after ten seconds. `quiet`: nothing (processes
    of a group other than rank zero).
    """

    reported = 0.0  # when any one was called last, by time.monotonic()

    def __init__(self, task: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> None:
        super().__init__()
        self.task, self.total, self.unit, self.quiet = task, total, unit, quiet
        self._bar: Any = None
        self._done_before, self._started = done, time.monotonic()
        self._last_line = self._started

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn
            from rich.progress import Progress as Bar

            columns = ("{task.description}", BarColumn(), "{task.fields[status]}")
            self._bar = self.enter_context(Bar(*columns, console=Console(stderr=True), transient=True))
            self._id = self._bar.add_task(self.task, total=self.total, completed=self._done_before, status="")
        return self

    def update(self, done: int, detail: str = "") -> None:
        """Report that `done` of all units are done; `detail` is shown beside them ("31,000 images/s")."""
        Progress.reported = time.monotonic()
        if self._bar:
            self._bar.update(self._id, completed=done, status=self._status(done, detail))
        elif time.monotonic() - self._last_line > QUIET_S:
            self.line(f"{self.task}: {self._status(done, detail)}")

    def line(self, text: str) -> None:
        """Print one line, such as the result of an epoch."""
        self._last_line = Progress.reported = time.monotonic()
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
            left = min(per_unit * max(self.total - done, 0), 1e12)  # seconds; of endless tasks, what Python can show
            parts.append(f"{timedelta(seconds=round(left))} left")
        return ", ".join(parts)
