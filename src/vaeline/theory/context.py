"""Context of the claims: a trained model, its data, its history and the params."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline import config
from vaeline.config import Binarise
from vaeline.core.model import VAE
from vaeline.data.sources.dataset import Split
from vaeline.training.history import Epoch
from vaeline.training.randomness import mix


@dataclass(frozen=True)
class Context:
    """What every claim is made from."""

    model: VAE
    section: config.Model
    objective: str
    binarise: Binarise
    train: Split
    validation: Split
    test: Split
    history: Sequence[Epoch]
    options: config.Theory
    device: torch.device

    def taken(self, split: Split, count: int) -> Split:
        """At most `count` images of a split, chosen by the seed."""
        return split.take(count, self.options.seed, in_order=True)

    def generator(self, stream: str) -> torch.Generator:
        """Random numbers, drawn on the CPU, that belong to this stream alone."""
        return torch.Generator().manual_seed(mix(self.options.seed, f"theory {stream}"))

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal noise on the device."""
        return torch.randn(shape, generator=self.generator(stream)).to(self.device)

    def observed(self, pixels: NDArray[np.uint8], stream: str, *, training: bool = False) -> Tensor:
        """Images in the likelihood's data space, with fresh noise where it wants any: [N, C, H, W]."""
        wants_noise = self.model.likelihood.uses_noise or (training and self.binarise == "dynamic")
        noise = torch.rand(pixels.shape, generator=self.generator(f"{stream} uniform")) if wants_noise else None
        batch = torch.from_numpy(pixels)
        return self.model.likelihood.observe(batch, noise).to(self.device)

    def tested(self, count: int) -> tuple[Split, Tensor]:
        """The first `count` of the random test images that the claims share, and the same in data space."""
        images = self.taken(self.test, self.options.images)[:count]
        return images, self.observed(images.pixels, "tested")
