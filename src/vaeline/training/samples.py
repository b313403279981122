"""The picture that shows a training at work: samples of the prior, the same latents each time."""

import numpy as np
import numpy.typing as npt
import torch

from vaeline.core.model import VAE
from vaeline.core.sampling import prior_samples
from vaeline.training.randomness import Noise

GRID = 8  # images a row, and rows


def sample_grid(model: VAE, noise: Noise) -> npt.NDArray[np.uint8]:
    """Expected images of 64 samples: uint8, H x W, or H x W x 3 for colour images."""
    noise.restart("samples", 0)
    images = prior_samples(model, noise.normal(GRID * GRID, model.latent_dim))  # [64, C, H, W]
    colours, height, width = model.shape
    grid = images.view(GRID, GRID, colours, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(GRID * height, GRID * width, colours).mul(255).round().to(torch.uint8)
    array: npt.NDArray[np.uint8] = pixels.cpu().numpy()
    return array if colours == 3 else array[..., 0]
