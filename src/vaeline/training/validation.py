"""The validation split under fixed noise: every image exactly once, summed per image."""

from dataclasses import dataclass

import torch

from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.data.batches import Images
from vaeline.training.randomness import Noise
from vaeline.training.step import precision

BATCH = 500  # images scored at once: it and the seed fix the noise, whatever train.batch_size is


@dataclass(frozen=True)
class Averages:
    """Means over images of the ELBO's terms, in nats."""

    reconstruction: float
    kl: float


@torch.no_grad()
def validate(model: VAE, images: Images, noise: Noise) -> Averages:
    """One posterior sample an image (none for an autoencoder), the same noise at each call.

    Sums per image in float64, divided by the number of images: no mean of batch means. Pixels are not binarised
    anew: under the Bernoulli they are binary already.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=noise.generator.device)
    for number, pixels in enumerate(images.batches(torch.arange(len(images)), BATCH)):
        noise.restart("validation", number)
        normal = None if model.deterministic else noise.normal(len(pixels), model.latent_dim)
        uniform = noise.uniform(pixels.shape) if model.likelihood.uses_noise else None
        x = model.likelihood.observe(pixels.to(torch.float32), uniform)
        with precision(x.device):
            terms = elbo_terms(model, x, normal)
        sums += torch.stack([terms.reconstruction.double().sum(), terms.kl.double().sum()])
    reconstruction, kl = (sums / len(images)).tolist()
    return Averages(reconstruction, kl)
