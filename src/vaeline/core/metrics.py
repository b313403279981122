"""Means with standard errors; latent-space and image metrics."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A mean and its standard error, sd / sqrt(N)."""

    value: float
    se: float

    @classmethod
    def of(cls, values: Tensor | NDArray[np.float64]) -> "Measured":
        """Of independent values [N], N at least 2, in float64."""
        if isinstance(values, Tensor):
            values = values.detach().double().flatten().cpu()
            return cls(float(values.mean()), float(values.std() / math.sqrt(len(values))))
        return cls(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))

    def numbers(self, name: str) -> dict[str, float]:
        """`name` and `name_se`, for the JSON."""
        return {name: self.value, f"{name}_se": self.se}

    def text(self, digits: int = 2) -> str:
        """With the sign of an error between them."""
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


def active_units(means: Tensor, threshold: float) -> tuple[int, Tensor]:
    """How many latent dimensions carry information, and the variances behind it.

    A dimension is active where the variance over the data of its posterior mean exceeds the threshold (Burda et al.
    2015, arXiv:1509.00519, section 5.2). means [N, Z], N at least 2 -> count, variances [Z] in float64.
    """
    variances = means.double().var(0)
    return int((variances > threshold).sum()), variances


def most_informative(kl_per_dimension: Tensor) -> Tensor:
    """Latent dimensions by falling mean KL to the prior: [N, Z] nats -> indices [Z]."""
    return kl_per_dimension.mean(0).argsort(descending=True, stable=True)


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean over pixels of the squared error, for each image: pixels on [0, 1], [B, C, H, W] twice -> [B]."""
    return (images - reconstructions).square().flatten(1).mean(1)


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, -10 log10(MSE), for pixels on [0, 1]; infinite where MSE is 0."""
    return -10 * torch.log10(squared_error)
