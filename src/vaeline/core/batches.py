"""A model applied to many images, few at a time: the one loop over batches, and the noise of each image."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline.core.estimators import per_image_uniform
from vaeline.core.model import VAE

BATCH = 500  # images at once, fewer where they are large:
PIXELS_AT_ONCE = 2**20  # decoded at once; some ten times as many bytes of memory


def batch_ranges(model: VAE, count: int, size: int = BATCH) -> Iterator[range]:
    """0 ... count - 1 in order, at most `size` or PIXELS_AT_ONCE at a time; the last range is short if need be."""
    size = max(1, min(size, PIXELS_AT_ONCE // math.prod(model.shape)))
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def pixel_batches(model: VAE, pixels: NDArray[np.uint8], size: int = BATCH) -> Iterator[tuple[range, Tensor]]:
    """Each image once, in order: indices, and uint8 pixels [B, C, H, W] on the model's device."""
    for indices in batch_ranges(model, len(pixels), size):
        batch = np.array(pixels[indices.start : indices.stop])  # a copy: the split is a read-only memory map
        yield indices, torch.from_numpy(batch).to(model.device)


def observe(model: VAE, batch: Tensor, indices: range, seed: int, *, binarise: bool = False) -> Tensor:
    """Pixels [B, C, H, W] in the likelihood's data space, with noise by (seed, index) alone.

    `binarise` draws grey pixels of a Bernoulli, which have no probability otherwise.
    """
    if not (model.likelihood.uses_noise or binarise):
        return model.likelihood.observe(batch, None)
    return model.likelihood.observe(batch, per_image_uniform(seed, indices, model.shape).to(batch.device))
