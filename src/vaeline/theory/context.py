"""What the claims are shown on: a trained model, its data, the params; and numbers with their standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline import config
from vaeline.config import Binarise
from vaeline.core.model import VAE
from vaeline.training.randomness import mix

Pixels = npt.NDArray[np.uint8]  # [N, C, H, W]
Rows = Sequence[dict[str, float | None]]


@dataclass(frozen=True)
class Images:
    """A split, and its labels if it has any."""

    pixels: Pixels
    labels: npt.NDArray[np.int64] | None = None  # [N]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, count: int, seed: int) -> "Images":
        """At most `count` images at random, read into memory."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return Images(np.array(self.pixels[chosen]), None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True)
class Subject:
    """All that the claims know."""

    model: VAE
    section: config.Model
    objective: str
    binarise: Binarise
    train: Images
    validation: Images
    test: Images
    history: Rows  # of reports/history.csv
    options: config.Theory
    device: torch.device

    def generator(self, stream: str) -> torch.Generator:
        """Random numbers, drawn on the CPU, that belong to this stream alone."""
        return torch.Generator().manual_seed(mix(self.options.seed, f"theory {stream}"))

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal noise on the device."""
        return torch.randn(shape, generator=self.generator(stream)).to(self.device)

    def observed(self, pixels: Pixels, stream: str, *, training: bool = False) -> Tensor:
        """Images in the likelihood's data space, with fresh noise where it wants any: [N, C, H, W]."""
        wants_noise = self.model.likelihood.uses_noise or (training and self.binarise == "dynamic")
        noise = torch.rand(pixels.shape, generator=self.generator(f"{stream} uniform")) if wants_noise else None
        batch = torch.from_numpy(pixels)
        return self.model.likelihood.observe(batch, noise).to(self.device)

    def tested(self, count: int) -> tuple[Images, Tensor]:
        """The first `count` of the random test images that the claims share, and the same in data space."""
        images = self.test.take(self.options.images, self.options.seed)
        images = Images(images.pixels[:count], None if images.labels is None else images.labels[:count])
        return images, self.observed(images.pixels, "tested")


@dataclass(frozen=True)
class Measured:
    """A mean and its standard error."""

    value: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> "Measured":
        """Of independent values [N], N at least 2."""
        values = values.detach().double().flatten().cpu()
        return cls(float(values.mean()), float(values.std() / math.sqrt(len(values))))

    def numbers(self, name: str) -> dict[str, float]:
        """`name` and `name_se`, for the JSON."""
        return {name: self.value, f"{name}_se": self.se}

    def text(self, digits: int = 2) -> str:
        """With the sign of an error between them."""
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


def finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """The same with None for what JSON has no number for."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items()}
        if isinstance(value, list):
            return [cleaned(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: cleaned(value) for key, value in numbers.items()}
