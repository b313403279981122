"""How far a training is: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Protocol, Self

log = logging.getLogger(__name__)

QUIET = 10.0  # seconds at least between two plain lines within an epoch


class Progress(Protocol):
    """Somebody who watches."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def moved(self, step: int, speed: float) -> None:
        """At a step, with this many images a second."""

    def line(self, text: str) -> None:
        """Something worth a line: an epoch's end, say."""


def open_progress(steps: int, quiet: bool = False) -> Progress:
    """The bar where standard error is a terminal, else lines through logging; `quiet`: nothing."""
    if quiet:
        return Silence()
    return Bar(steps) if sys.stderr.isatty() else Lines(steps)


class Silence:
    """For those who do not lead a team."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def moved(self, step: int, speed: float) -> None:
        """See `Progress`."""

    def line(self, text: str) -> None:
        """See `Progress`."""


class Lines(Silence):
    """One line at most each ten seconds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._last = time.monotonic()

    def moved(self, step: int, speed: float) -> None:
        """See `Progress`."""
        if time.monotonic() - self._last > QUIET:
            self.line(f"step {step:,} of {self.steps:,}, {speed:,.0f} images/s")

    def line(self, text: str) -> None:
        """See `Progress`."""
        self._last = time.monotonic()
        log.info("%s", text)


class Bar:
    """rich's bar, with the lines above it."""

    def __init__(self, steps: int) -> None:
        from rich import progress
        from rich.console import Console

        columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), "{task.fields[speed]}")
        self._bar = progress.Progress(*columns, progress.TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=steps, speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def moved(self, step: int, speed: float) -> None:
        """See `Progress`."""
        self._bar.update(self._task, completed=step, speed=f"{speed:,.0f} images/s")

    def line(self, text: str) -> None:
        """See `Progress`."""
        self._bar.console.print(text, highlight=False, markup=False)
