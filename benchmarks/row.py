"""One measure beside its bar."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table that `python -m benchmarks` prints."""

    name: str
    measured: str
    ratio: float | None  # what the bar is about
    bar: str
    ok: bool
