"""The two splits that training sees, the bound on the validation split; scale and density of the training codes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.config.data import Binarise
from vaeline.core.estimators import gathered
from vaeline.core.model import VAE
from vaeline.core.objectives import Bound, elbo_terms, estimate
from vaeline.core.priors import FullMixture
from vaeline.data.batches import ImageSource, open_images
from vaeline.errors import UserError
from vaeline.io.npy import Pixels, blocks
from vaeline.training.process_group import SINGLE, ProcessGroup
from vaeline.training.randomness import Noise, permutation
from vaeline.training.step import Averages, matrix_products

# images at once: it, the samples and the seed fix the noise, whatever train.batch_size is
VALIDATION_BATCH, SCALE_BATCH = 500, 100
FIT_IMAGES, FIT_STEPS = 20_000, 30  # of EM


@dataclass(frozen=True)
class Splits:
    """What training sees, [N, C, H, W] each; never the test split."""

    train: Pixels
    validation: Pixels
    binarise: Binarise
    whole: Pixels | None = None  # training images of which each step takes a part, at a random place

    def some(self, count: int, seed: int) -> Tensor:
        """Training images chosen at random, pixels on [0, 1]: [count, C, H, W]; again from the first if too few."""
        order = permutation(seed, -1, len(self.train))  # no epoch's
        chosen = order[torch.arange(count) % len(order)].sort().values
        return torch.from_numpy(self.train[chosen.numpy()]) / 255

    def refuse_grey(self) -> None:
        """Raise UserError where pixels that a Bernoulli is to score are neither black nor white."""
        binary = {"validation": self.validation} | ({} if self.binarise == "dynamic" else {"train": self.train})
        for name, pixels in binary.items():
            for part in blocks(pixels):
                if ((pixels[part] != 0) & (pixels[part] != 255)).any():
                    raise UserError(
                        f"model.likelihood.kind: is 'bernoulli', but the {name} split has grey pixels; allowed: black "
                        "and white ones (set data.binarise to static or dynamic), or another likelihood"
                    )


@torch.no_grad()
def validate(
    model: VAE,
    images: ImageSource,
    noise: Noise,
    bound: Bound = "elbo",
    samples: int = 1,
    precision: str = "float32",
    group: ProcessGroup = SINGLE,
) -> Averages:
    """The bound that is trained, mean over images: the ELBO at one posterior sample each, or IWAE with `samples`.

    The same noise at each call. Sums in float64; a group distributes whole batches over its processes.
    """
    iwae = bound == "iwae"
    sums = torch.zeros(3, dtype=torch.float64, device=noise.generator.device)
    batches = torch.split(torch.arange(len(images)), max(1, VALIDATION_BATCH // (samples if iwae else 1)))
    own = range(group.rank, len(batches), group.size)
    for number, pixels in zip(own, images.batches([batches[number] for number in own]), strict=True):
        noise.restart("validation", number)
        shape = (samples, len(pixels), model.latent_dim) if iwae else (len(pixels), model.latent_dim)
        normal = None if model.deterministic else noise.normal(*shape)
        uniform = noise.uniform(pixels.shape) if model.likelihood.uses_noise else None
        x = model.likelihood.observe(pixels.to(torch.float32), uniform)
        with matrix_products(x.device, precision):
            if iwae and normal is not None:
                found = estimate(model, x, normal, "pathwise", bound="iwae")
                terms, gain = found.terms, found.bound - found.terms.elbo
            else:
                terms = elbo_terms(model, x, normal)
                gain = torch.zeros_like(terms.reconstruction)
            sums += torch.stack([terms.reconstruction, terms.kl, gain]).double().sum(1)
    return Averages.of([*group.all_reduce([sums])[0].tolist(), len(images)])


@torch.no_grad()
def training_codes(model: VAE, splits: Splits, seed: int, device: torch.device) -> Iterator[Tensor]:
    """z ~ q(z|x) of the training images in order, [B, Z] a batch. The model ends on the CPU."""
    images, noise = open_images(splits.train, device), Noise(seed, device)
    draws_uniform = model.likelihood.uses_noise or splits.binarise == "dynamic"
    model.to(device)
    for number, pixels in enumerate(images.batches(torch.split(torch.arange(len(images)), SCALE_BATCH))):
        noise.restart("scale", number)
        normal = noise.normal(len(pixels), model.latent_dim)
        x = model.likelihood.observe(pixels.to(torch.float32), noise.uniform(pixels.shape) if draws_uniform else None)
        yield model.encode(x).rsample(normal)
    model.cpu()


def latent_scale(model: VAE, splits: Splits, seed: int, device: torch.device) -> tuple[float, float]:
    """Mean and 1 / (standard deviation) of z ~ q(z|x) over the training images and latents, for latent diffusion.

    Rombach et al. 2022 (arXiv:2112.10752), appendix G, who take the first batch. The model ends on the CPU.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for codes in training_codes(model, splits, seed, device):
        z = codes.double()
        sums += torch.stack([z.sum(), z.square().sum(), torch.full_like(sums[0], z.numel())])
    total, squares, count = sums.tolist()
    variance = max(squares / count - (total / count) ** 2, 1e-24)  # of codes that are all one: 0, but for rounding
    return total / count, variance**-0.5


def fitted_prior(model: VAE, components: int, splits: Splits, seed: int, device: torch.device) -> FullMixture:
    """A mixture of full Gaussians of the most likelihood for z ~ q(z|x), x training images, by EM from k-means++.

    Ghosh et al. 2020 (arXiv:1903.12436), section 4, for a prior that the codes do not follow. Each code is divided by
    its spread, and a covariance gets 1e-6 of it. Of at most FIT_IMAGES images, the same for the same seed, as many
    as components or more; the model ends on the CPU.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    z = gathered(training_codes(model, splits, seed, device), len(splits.train))
    z = z[permutation(seed, -1, len(z))[:FIT_IMAGES]].double()
    centre, spread = z.mean(0), z.std(0).clamp(min=1e-4)
    mixture = GaussianMixture(components, init_params="k-means++", max_iter=FIT_STEPS, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it need not converge
        mixture.fit(((z - centre) / spread).numpy())
    means, factors = torch.from_numpy(mixture.means_), torch.from_numpy(mixture.precisions_cholesky_)
    prior = FullMixture(components, model.latent_dim)
    prior.set(torch.from_numpy(mixture.weights_), centre + spread * means, factors / spread.unsqueeze(1))
    return prior
