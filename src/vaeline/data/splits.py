"""Which image goes to which split, and no image to two of them."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vaeline.errors import UserError

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
    held = _count(validation, pool)
    kept = 0 if official else held if test == "auto" else _count(test, pool)
    if held + kept >= pool:
        taken = "" if official else f" and test {kept}"
        most = (pool - 1) // 2 if not official and test == "auto" else max(pool - 1 - kept, 0)
        raise UserError(
            f"data.validation: found {validation}: validation {held}{taken} leave none of {pool} images to train on; "
            f"allowed: at most {most}{'' if official or test == 'auto' else f' beside data.test = {test}'}"
        )
    order = np.random.default_rng(seed).permutation(pool)
    return order[held + kept :], order[kept : held + kept], order[:kept]


def _count(share: Share, pool: int) -> int:
    return max(1, round(share * pool)) if isinstance(share, float) else share


def fingerprints(pixels: NDArray[np.uint8]) -> list[bytes]:
    """128 bits a image: two images have the same exactly when they are the same."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in pixels]


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
