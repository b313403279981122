"""What training tells the world while it runs; who listens is none of its business."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Tracker(Protocol):
    """A listener. `step` counts optimiser steps. It must return at once (`flush` may wait for a disk), never raise."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Take named numbers."""

    def image(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Take a picture, H x W or H x W x 3."""

    def flush(self) -> None:
        """Have all that was told survive a power failure: a checkpoint that does follows."""


class NullTracker:
    """Nobody listens."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def image(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""
