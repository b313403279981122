"""Claim: one statement of the theory, as data; and the context that all claims are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline import config
from vaeline.config import Binarise
from vaeline.core.model import VAE
from vaeline.data.sources.dataset import Split
from vaeline.plotting.charts import Picture
from vaeline.training.history import Epoch
from vaeline.training.randomness import mix


@dataclass(frozen=True)
class Claim:
    """One statement; all text is plain, `numbers` is its part of reports/theory.json."""

    key: str
    title: str
    equation: str
    words: Sequence[str] = ()  # paragraphs
    numbers: dict[str, Any] = field(default_factory=dict)  # none where the claim does not apply to the model
    table: Sequence[Sequence[str]] = ()  # the header first
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Context:
    """A trained model, its data, its history and the params."""

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
        return self.model.likelihood.observe(torch.from_numpy(pixels), noise).to(self.device)

    def tested(self, count: int) -> Tensor:
        """The first `count` of the random test images that the claims share, in data space: [N, C, H, W]."""
        return self.observed(self.taken(self.test, self.options.images)[:count].pixels, "tested")
