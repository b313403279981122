"""A data set in memory, as the readers give it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Images:
    """Images and what is known about each."""

    pixels: NDArray[np.uint8]  # N x C x H x W
    labels: NDArray[np.int64] | None = None  # N
    factors: NDArray[np.float64] | None = None  # N x F

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Dataset:
    """All images of a source; `test` is the source's own test split, where it has one."""

    pool: Images
    test: Images | None = None
    classes: tuple[str, ...] | None = None
