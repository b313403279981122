"""Images and what is known of them, as the readers return them and the stages use them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaeline.errors import UserError
from vaeline.io.npy import blocks

DIMMEST = 32  # the largest pixel of a data set


@dataclass(frozen=True)
class Split:
    """The images of a split, and what is known of them."""

    pixels: NDArray[np.uint8]  # [N, C, H, W], most often a memory map
    labels: NDArray[np.int64] | None = None  # [N]
    factors: NDArray[np.float64] | None = None  # [N, F]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Split":
        """Some of the images, with their labels and factors."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(self.pixels[rows], labels, None if self.factors is None else self.factors[rows])

    def take(self, count: int, seed: int, *, in_order: bool = False) -> "Split":
        """At most `count` images at random, read into memory: in random order, or in that of the split."""
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return self[np.sort(chosen) if in_order else chosen]


@dataclass(frozen=True)
class Dataset:
    """All images of a source; `test` is the source's own test split, where it has one."""

    pool: Split
    test: Split | None = None
    classes: tuple[str, ...] | None = None


def check_brightness(pixels: NDArray[np.uint8], where: str) -> None:
    """Raise UserError where the largest of all pixels is below 32: levels or a mask of 5 bits or fewer, not 8."""
    if (largest := max(int(pixels[block].max()) for block in blocks(pixels))) < DIMMEST:
        times = f": multiply all of them by 255 / {largest}" if largest else ""
        raise UserError(
            f"{where}: the largest value of all images is {largest}; allowed: 8-bit pixels, 0 to 255, "
            f"at least one of {DIMMEST} or more{times}"
        )
