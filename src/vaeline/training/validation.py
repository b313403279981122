"""The validation split under fixed noise: every image exactly once, summed per image."""

import torch
from torch import Tensor

from vaeline.core.gradients import Bound, estimate
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.data.batches import ImageSource
from vaeline.training.meter import Averages
from vaeline.training.process_group import SINGLE_PROCESS, ProcessGroup
from vaeline.training.randomness import Noise
from vaeline.training.step import precision

BATCH = 500  # latents decoded at once: it, the samples and the seed fix the noise, whatever train.batch_size is


@torch.no_grad()
def validate(
    model: VAE,
    images: ImageSource,
    noise: Noise,
    bound: Bound = "elbo",
    samples: int = 1,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Averages:
    """The bound that is trained: the ELBO at one posterior sample an image, or IWAE with `samples` of them.

    An autoencoder takes none. The same noise at each call. Sums per image in float64, divided by the number of
    images: no mean of batch means. Pixels are not binarised anew: under the Bernoulli they are binary already.
    A group distributes whole batches over its processes.
    """
    iwae = bound == "iwae"
    sums = torch.zeros(3, dtype=torch.float64, device=noise.generator.device)
    batch = max(1, BATCH // samples) if iwae else BATCH
    batches = torch.split(torch.arange(len(images)), batch)
    own = range(group.rank, len(batches), group.size)
    for number, pixels in zip(own, images.batches([batches[number] for number in own]), strict=True):
        noise.restart("validation", number)
        shape = (samples, len(pixels), model.latent_dim) if iwae else (len(pixels), model.latent_dim)
        normal = None if model.deterministic else noise.normal(*shape)
        uniform = noise.uniform(pixels.shape) if model.likelihood.uses_noise else None
        x = model.likelihood.observe(pixels.to(torch.float32), uniform)
        with precision(x.device):
            sums += _sums(model, x, normal, iwae)
    return Averages.of([*group.all_reduce([sums])[0].tolist(), len(images)])


def _sums(model: VAE, x: Tensor, normal: Tensor | None, iwae: bool) -> Tensor:
    """Of reconstruction, KL and the bound's gain over the ELBO: [3]."""
    if iwae and normal is not None:
        found = estimate(model, x, normal, "pathwise", bound="iwae")
        terms, gain = found.terms, found.bound - found.terms.elbo
    else:
        terms = elbo_terms(model, x, normal)
        gain = torch.zeros_like(terms.reconstruction)
    return torch.stack([terms.reconstruction, terms.kl, gain]).double().sum(1)
