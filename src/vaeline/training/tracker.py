"""What training reports while it runs: the protocol that a tracker implements."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Tracker(Protocol):
    """`step` counts optimiser steps. A tracker returns at once (`flush` may wait for a disk) and never raises."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Named numbers."""

    def image(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """A picture, H x W or H x W x 3."""

    def flush(self) -> None:
        """Everything reported so far survives a power failure after this; a checkpoint follows."""


class NullTracker:
    """A tracker that drops everything."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def image(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""
