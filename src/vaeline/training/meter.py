"""Means and speed since the last look, from sums that only grow."""

import time
from collections.abc import Sequence


class Meter:
    """Reads an epoch's running totals: the sums of reconstruction and KL, and the images."""

    def __init__(self, totals: Sequence[float]) -> None:
        self._last, self._first_images = totals, totals[2]
        self._time = self._start = time.perf_counter()

    def read(self, totals: Sequence[float]) -> tuple[float, float, float]:
        """Reconstruction and KL in nats per image, and images a second, since the last reading."""
        reconstruction, kl, images = (now - before for now, before in zip(totals, self._last, strict=True))
        now = time.perf_counter()
        seconds, self._last, self._time = now - self._time, totals, now
        return reconstruction / images, kl / images, images / seconds

    def speed(self) -> float:
        """Images a second from the start to the last reading; 0 before it."""
        seconds = self._time - self._start
        return (self._last[2] - self._first_images) / seconds if seconds else 0.0
