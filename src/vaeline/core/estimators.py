"""log p(x) by importance sampling, with standard errors; noise that depends on nothing but (seed, image)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import conditional_log_likelihood

_NORMAL, _UNIFORM = 0, 1  # streams: disjoint parts of an image's random sequence


def log_weights(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """log w = log p(x|z) + log p(z) - log q(z|x) at z = mean + std * noise, in nats per image.

    x [B, C, H, W], noise [K, B, Z] standard normal -> [K, B]. The densities at the sample, not the closed-form KL:
    the mean over K of w is then an unbiased estimate of p(x) (Burda et al. 2015, arXiv:1509.00519, equation 8).
    """
    return _log_weights(model, x, model.encode(x), noise)


def _log_weights(model: VAE, x: Tensor, posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
    z = posterior.rsample(noise)  # [K, B, Z]
    return conditional_log_likelihood(model, x, z) + model.prior.log_prob(z) - posterior.log_prob(z)


def importance_log_likelihood(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log((1/K) sum_k w_k), a lower bound on log p(x) in expectation, and its standard error: [K, B] -> [B], [B].

    The standard error is by the delta method, sd(w) / (mean(w) sqrt(K)), in nats; NaN for K = 1, which shows no
    spread.
    """
    running = _RunningMean(log_weights.shape[1], log_weights.device)
    running.add(log_weights)
    return running.result()


class _RunningMean:
    """The mean of weights given as logarithms, and its spread, in float64: only [B] numbers are kept."""

    def __init__(self, images: int, device: torch.device) -> None:
        self.count = 0
        self.log_sum = torch.full((images,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum_of_squares = self.log_sum.clone()

    def add(self, log_weights: Tensor) -> None:
        """[K, B]."""
        log_weights = log_weights.double()
        self.count += len(log_weights)
        self.log_sum = torch.logaddexp(self.log_sum, log_weights.logsumexp(0))
        self.log_sum_of_squares = torch.logaddexp(self.log_sum_of_squares, (2 * log_weights).logsumexp(0))

    def result(self) -> tuple[Tensor, Tensor]:
        """log mean weight and its standard error, [B] each."""
        k = self.count
        estimate = self.log_sum - math.log(k)
        excess = torch.expm1(self.log_sum_of_squares - 2 * self.log_sum + math.log(k))  # variance / mean^2
        standard_error = (excess.clamp(min=0) / (k - 1)).sqrt() if k > 1 else torch.full_like(estimate, math.nan)
        return estimate, standard_error


@torch.no_grad()
def log_likelihood(
    model: VAE, pixels: Tensor, indices: Sequence[int], *, k: int, seed: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Importance-sampled log p(x) of uint8 pixels [B, C, H, W] with k samples, and its standard error: [B], [B].

    In nats per image, float64. `indices` number the images within their split: with `seed` they fix each image's
    noise (dequantisation too), so that batches and `chunk` change only the rounding.

    Memory holds at most chunk * B decoded images, whatever k is: where it can, many samples of few images, since an
    image by itself need not be repeated for its samples.
    """
    device, at_once = pixels.device, chunk * len(pixels)
    uniform = per_image_uniform(seed, indices, tuple(pixels.shape[1:])) if model.likelihood.uses_noise else None
    x = model.likelihood.observe(pixels, None if uniform is None else uniform.to(device))
    posterior = model.encode(x)
    images = max(1, at_once // k)
    results = []
    for first in range(0, len(pixels), images):
        part = slice(first, first + images)
        part_posterior = DiagonalGaussian(posterior.mean[part], posterior.log_variance[part])
        generators = [_generator(seed, index, _NORMAL) for index in indices[part]]
        running = _RunningMean(len(generators), device)
        for start in range(0, k, at_once):
            size = (min(at_once, k - start), model.latent_dim)
            noise = torch.from_numpy(np.stack([g.standard_normal(size, dtype=np.float32) for g in generators], axis=1))
            running.add(_log_weights(model, x[part], part_posterior, noise.to(posterior.mean)))
        results.append(running.result())
    estimates, errors = zip(*results, strict=True)
    return torch.cat(estimates), torch.cat(errors)


def per_image_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 on the CPU, [B, *shape]: row i depends on (seed, indices[i]) alone."""
    rows = [_generator(seed, index, _NORMAL).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows))


def per_image_uniform(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Uniform noise on [0, 1), float32 on the CPU, [B, *shape]: row i depends on (seed, indices[i]) alone."""
    rows = [_generator(seed, index, _UNIFORM).random(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows))


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """The counter-based Philox generator of one image (Salmon et al. 2011): sequential draws, however cut up."""
    return np.random.Generator(np.random.Philox(key=[seed, int(index)], counter=[0, 0, 0, stream]))
