"""Pictures of a model: each function returns expected pixels on [0, 1], [N, C, H, W], without gradients."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline.core.model import VAE


@torch.no_grad()
def prior_samples(model: VAE, noise: Tensor) -> Tensor:
    """Expected images of z ~ p(z), from standard normal noise [N, Z]."""
    return decoded(model, model.prior.sample(noise))


@torch.no_grad()
def reconstructions(model: VAE, x: Tensor) -> Tensor:
    """Expected images at the posterior means of x [N, C, H, W] (in data space)."""
    return decoded(model, model.encode(x).mean)


@torch.no_grad()
def interpolate(model: VAE, x: Tensor, steps: int, spherical: bool = False) -> Tensor:
    """`steps` images from x[0] to x[1], both ends included, along their posterior means: x [2, C, H, W]."""
    start, end = model.encode(x).mean
    path = slerp if spherical else torch.lerp
    fractions = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return decoded(model, torch.stack([path(start, end, fraction) for fraction in fractions]))


@torch.no_grad()
def mixtures(model: VAE, x: Tensor, weights: Tensor) -> Tensor:
    """Images of weighted means of the posterior means of x [3, C, H, W]: weights [N, 3], rows summing to 1."""
    means = model.encode(x).mean  # [3, Z]
    return decoded(model, weights.to(means) @ means)


@torch.no_grad()
def traversals(model: VAE, x: Tensor, dimensions: Tensor, values: Tensor) -> Tensor:
    """From the posterior mean of x [1, C, H, W], set one latent dimension at a time to each value.

    dimensions [D] (indices), values [V] -> [D * V, C, H, W], the values running fastest.
    """
    z = model.encode(x).mean.repeat(len(dimensions), len(values), 1)  # [D, V, Z]
    for row, dimension in zip(z, dimensions, strict=True):
        row[:, dimension] = values.to(z)
    return decoded(model, z.flatten(0, 1))


def decoded(model: VAE, z: Tensor) -> Tensor:
    """Expected pixels p(x|z) for z [N, Z]."""
    return model.likelihood.mean(model.decode(z))


def slerp(start: Tensor, end: Tensor, fraction: Tensor | float) -> Tensor:
    """Spherical interpolation of two vectors [Z] (White 2016, arXiv:1609.04468): keeps to a Gaussian's typical norms.

    Falls back to the straight line where the vectors are parallel or opposite and no arc is defined.
    """
    cosine = torch.cosine_similarity(start, end, dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    arc = (torch.sin((1 - fraction) * angle) * start + torch.sin(fraction * angle) * end) / sine
    return torch.where(sine > 1e-3, arc, torch.lerp(start, end, torch.as_tensor(fraction).to(start)))


def barycentric_weights(side: int) -> Tensor:
    """Weights of three images over a triangle with `side` points an edge, row by row: [side (side + 1) / 2, 3].

    Row r has r + 1 points: the first is the first image alone, the last runs from the second image to the third.
    """
    steps = max(side - 1, 1)
    rows = [(steps - i, i - j, j) for i in range(side) for j in range(i + 1)]
    return torch.tensor(rows, dtype=torch.float32) / steps


def sample_sheet(model: VAE, noise: Tensor) -> NDArray[np.uint8]:
    """A square grid of prior samples from noise [N^2, Z]: uint8, [N H, N W], or [N H, N W, 3] for colour images."""
    images, side = prior_samples(model, noise), math.isqrt(len(noise))
    colours, height, width = model.shape
    grid = images.view(side, side, colours, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(side * height, side * width, colours).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.cpu().numpy()
    return array if colours == 3 else array[..., 0]
