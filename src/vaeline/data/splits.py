"""Which image goes to which split, and no image to two of them."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vaeline.errors import UserError
from vaeline.io.npy import blocks

Indices = NDArray[np.int64]
Share = int | float  # a count, or a fraction of all images


def split(
    pool: int, validation: Share, test: Literal["auto"] | Share, *, official: bool, seed: int
) -> tuple[Indices, Indices, Indices]:
    """Indices of train, validation and test in a pool of images: disjoint, together all, a function of the seed.

    `official` says that the source has a test split of its own: it is kept, `test` must be auto and the third
    part is empty. Otherwise auto means as many as validation. Raises UserError where train would be empty.
    """
    if official and test != "auto":
        raise UserError(f"data.test: found {test}, but the source has a test split of its own; allowed: auto")
    wanted = (validation, 0 if official else validation if test == "auto" else test)
    held, kept = (max(1, round(part * pool)) if isinstance(part, float) else part for part in wanted)
    if held + kept >= pool:
        raise UserError(
            f"data.validation: found {validation}: validation {held} and test {kept} leave none of {pool} images "
            f"to train on; allowed: less than {pool} together"
        )
    order = np.random.default_rng(seed).permutation(pool)
    return order[held + kept :], order[kept : held + kept], order[:kept]


def fingerprints(pixels: NDArray[np.uint8]) -> list[bytes]:
    """128 bits an image: two images have the same exactly when they are the same."""
    images = (np.ascontiguousarray(image).data for block in blocks(pixels) for image in pixels[block])
    return [hashlib.sha256(image).digest()[:16] for image in images]


def distinct(splits: Mapping[str, tuple[Indices, list[bytes]]]) -> dict[str, Indices]:
    """For each split, in order of precedence, the indices whose fingerprint is in no split before it.

    Duplicates within a split stay: they are part of the distribution, and measure nothing wrongly.
    """
    seen: set[bytes] = set()
    kept = {}
    for name, (indices, prints) in splits.items():
        new = np.fromiter((prints[index] not in seen for index in indices), bool, len(indices))
        kept[name] = indices[new]
        seen.update(prints[index] for index in indices)
    return kept
