"""Scale of a model's latents, for training another model on them (latent diffusion)."""

import torch

from vaeline.core.model import VAE
from vaeline.data.batches import open_images
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits

BATCH = 100  # images encoded at once: it and the seed fix the noise


@torch.no_grad()
def scale_factor(model: VAE, splits: Splits, seed: int, device: torch.device) -> float:
    """1 / (standard deviation of z ~ q(z|x) over the training images and latents): z times it has variance 1.

    One sample an image, sums in float64 (Rombach et al. 2022, arXiv:2112.10752, appendix G, who take the first batch).
    The model is brought to the device and back to the CPU.
    """
    images, noise = open_images(splits.train, device), Noise(seed, device)
    draws_uniform = model.likelihood.uses_noise or splits.binarise == "dynamic"
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    model.to(device)
    for number, pixels in enumerate(images.batches(torch.split(torch.arange(len(images)), BATCH))):
        noise.restart("scale", number)
        normal = noise.normal(len(pixels), model.latent_dim)
        x = model.likelihood.observe(pixels.to(torch.float32), noise.uniform(pixels.shape) if draws_uniform else None)
        z = model.encode(x).rsample(normal).double()  # [B, Z]
        sums += torch.stack([z.sum(), z.square().sum(), torch.full_like(sums[0], z.numel())])
    model.cpu()
    total, squares, count = sums.tolist()
    return float((squares / count - (total / count) ** 2) ** -0.5)
