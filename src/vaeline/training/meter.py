"""Means and speed since the last look, from sums that only grow."""

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Averages:
    """Means over images, in nats, of a bound and the ELBO's terms."""

    reconstruction: float
    kl: float
    gain: float  # of the bound over the ELBO at the same samples: none unless the bound is IWAE-k

    @classmethod
    def of(cls, totals: Sequence[float]) -> "Averages":
        """From the sums over images of the three, and the number of images."""
        *sums, images = totals
        return cls(*(value / images for value in sums))

    @property
    def bound(self) -> float:
        """The bound itself."""
        return self.reconstruction - self.kl + self.gain


class Meter:
    """Reads an epoch's running totals: the sums of reconstruction, KL and gain, and the images.

    `last` is what they were at the last reading, which an interruption may lie after; time counts from here.
    """

    def __init__(self, totals: Sequence[float], last: Sequence[float] | None = None) -> None:
        self.last = totals if last is None else last
        self._images = self._first_images = totals[-1]
        self._time = self._start = time.perf_counter()

    def read(self, totals: Sequence[float]) -> tuple[Averages, float]:
        """The averages, and images a second, since the last reading."""
        grown = [now - before for now, before in zip(totals, self.last, strict=True)]
        now = time.perf_counter()
        speed = (totals[-1] - self._images) / (now - self._time)
        self.last, self._images, self._time = totals, totals[-1], now
        return Averages.of(grown), speed

    def speed(self) -> float:
        """Images a second from the start to the last reading; 0 before it."""
        seconds = self._time - self._start
        return (self._images - self._first_images) / seconds if seconds else 0.0
