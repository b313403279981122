"""Latent-space and image metrics."""

import torch
from torch import Tensor


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
