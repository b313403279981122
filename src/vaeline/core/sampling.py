"""Pictures of a model: each function returns expected pixels on [0, 1], [N, C, H, W], without gradients."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline.core.model import VAE


def decoded(model: VAE, z: Tensor) -> Tensor:
    """Expected pixels p(x|z) for z [N, Z]."""
    return model.likelihood.mean(model.decode(z))


@torch.no_grad()
def prior_samples(model: VAE, noise: Tensor) -> Tensor:
    """Expected images of z ~ p(z), from standard normal noise [N, Z]."""
    return decoded(model, model.prior.sample(noise))


@torch.no_grad()
def reconstructions(model: VAE, x: Tensor) -> Tensor:
    """Expected images at the posterior means of x [N, C, H, W] (in data space)."""
    return decoded(model, model.encode(x).mean)


@torch.no_grad()
def interpolate(model: VAE, x: Tensor, steps: int) -> Tensor:
    """`steps` images from x[0] to x[1], both ends included, along their posterior means: x [2, C, H, W]."""
    start, end = model.encode(x).mean
    fractions = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return decoded(model, torch.stack([torch.lerp(start, end, fraction) for fraction in fractions]))


def sample_sheet(model: VAE, noise: Tensor) -> NDArray[np.uint8]:
    """A square grid of prior samples from noise [N^2, Z]: uint8, [N H, N W], or [N H, N W, 3] for colour images."""
    images, side = prior_samples(model, noise), math.isqrt(len(noise))
    colours, height, width = model.shape
    grid = images.view(side, side, colours, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(side * height, side * width, colours).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.cpu().numpy()
    return array if colours == 3 else array[..., 0]
