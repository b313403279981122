"""Pictures of a model: expected pixels on [0, 1], [N, C, H, W]."""

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
def interpolate(model: VAE, x: Tensor, steps: int) -> Tensor:
    """`steps` images from x[0] to x[1], both ends included, along their posterior means: x [2, C, H, W]."""
    start, end = model.encode(x).mean
    fractions = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return decoded(model, torch.stack([torch.lerp(start, end, fraction) for fraction in fractions]))


@torch.no_grad()
def sample_sheet(model: VAE, noise: Tensor) -> NDArray[np.uint8]:
    """A square grid of prior samples from noise [N^2, Z]: uint8, [N H, N W], or [N H, N W, 3] for colour images."""
    images, side = decoded(model, model.prior.sample(noise)), math.isqrt(len(noise))
    colours, height, width = model.shape
    grid = images.view(side, side, colours, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(side * height, side * width, colours).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.cpu().numpy()
    return array if colours == 3 else array[..., 0]
