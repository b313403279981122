"""A model applied to many images: the batch loop, noise by (seed, image) alone, and log p(x) by two estimators."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.laplace import DEGREES, laplace_proposal
from vaeline.core.model import VAE
from vaeline.core.objectives import log_joint, log_weights

BATCH = 500  # images at once, fewer where they are large:
PIXELS_AT_ONCE = 2**20  # decoded at once; some ten times as many bytes of memory
_NORMAL, _UNIFORM, _CHI_SQUARED = 0, 1, 2  # streams: disjoint parts of an image's random sequence
TARGET_ACCEPTANCE = 0.65  # of a Hamiltonian move (Beskos et al. 2013)
FIRST_STEP, TUNING_RATE = 0.5, 0.3  # the step in standard deviations of q(z|x)

Proposal = Literal["posterior", "laplace"]  # what importance sampling draws z from: q(z|x), or see core/laplace.py


def batch_ranges(model: VAE, count: int, size: int = BATCH) -> Iterator[range]:
    """0 ... count - 1 in order, at most `size` or PIXELS_AT_ONCE at a time; the last range is short if need be."""
    size = max(1, min(size, PIXELS_AT_ONCE // math.prod(model.shape)))
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def pixel_batches(model: VAE, pixels: NDArray[np.uint8], size: int = BATCH) -> Iterator[tuple[range, Tensor]]:
    """Each image once, in order: indices, and uint8 pixels [B, C, H, W] on the model's device."""
    for indices in batch_ranges(model, len(pixels), size):
        batch = np.array(pixels[indices.start : indices.stop])  # a copy: the split is a read-only memory map
        yield indices, torch.from_numpy(batch).to(model.device)


def gathered(parts: Iterable[Tensor], count: int) -> Tensor:
    """All `count` rows of tensors [B, ...], on the CPU, each put into its place as it comes.

    Small results kept between large ones that are freed would leave holes in the heap that nothing fits into.
    """
    found, start = torch.empty(0), 0
    for part in parts:
        found = found if start else part.new_empty(count, *part.shape[1:], device="cpu")
        found[start : start + len(part)] = part
        start += len(part)
    return found


def encoded(model: VAE, images: Iterable[Tensor], count: int) -> DiagonalGaussian:
    """q(z|x) of `count` images in data space, which come in batches [B, C, H, W]; on the CPU."""
    posteriors = map(model.encode, images)
    both = gathered((torch.stack([q.mean, q.log_variance], 1) for q in posteriors), count)
    return DiagonalGaussian(*both.transpose(0, 1).contiguous())


def posterior_samples(model: VAE, pixels: NDArray[np.uint8], seed: int) -> Iterator[tuple[DiagonalGaussian, Tensor]]:
    """q(z|x) of the images in order, and a sample of each, [B, Z], by (seed, image)."""
    for indices, batch in pixel_batches(model, pixels):
        posterior = model.encode(observe(model, batch, indices, seed))
        yield posterior, posterior.rsample(per_image_noise(seed, indices, (model.latent_dim,)).to(batch.device))


def observe(model: VAE, batch: Tensor, indices: Sequence[int], seed: int, *, binarise: bool = False) -> Tensor:
    """Pixels [B, C, H, W] in data space, with noise by (seed, index); `binarise` draws a Bernoulli's grey pixels."""
    if not (model.likelihood.uses_noise or (binarise and model.likelihood.measure == "binary")):
        return model.likelihood.observe(batch, None)
    return model.likelihood.observe(batch, per_image_uniform(seed, indices, model.shape).to(batch.device))


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


def importance_log_likelihood(*log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log((1/K) sum_k w_k), a lower bound on log p(x) in expectation, and its standard error: [K, B] -> [B], [B].

    Of pieces of K. By the delta method, sd(w) / (mean(w) sqrt(K)), in nats, float64; NaN for K = 1.
    """
    pieces = [piece.double() for piece in log_weights]
    k = sum(map(len, pieces))
    log_sum = functools.reduce(torch.logaddexp, [piece.logsumexp(0) for piece in pieces])
    log_sum_of_squares = functools.reduce(torch.logaddexp, [(2 * piece).logsumexp(0) for piece in pieces])
    estimate = log_sum - math.log(k)
    excess = torch.expm1(log_sum_of_squares - 2 * log_sum + math.log(k))  # variance / mean^2
    standard_error = (excess.clamp(min=0) / (k - 1)).sqrt() if k > 1 else torch.full_like(estimate, math.nan)
    return estimate, standard_error


@torch.no_grad()
def log_likelihood(
    model: VAE,
    pixels: Tensor,
    indices: Sequence[int],
    *,
    k: int,
    seed: int,
    chunk: int,
    proposal: Proposal = "posterior",
) -> tuple[Tensor, Tensor]:
    """Importance-sampled log p(x) of uint8 pixels [B, C, H, W] with k samples, and its standard error: [B], [B].

    In nats per image, float64. `indices` number the images within their split: with `seed` they fix each image's
    noise (dequantisation too), so that batches and `chunk` change only the rounding. At most chunk * B images are
    decoded at once: where it can, many samples of few images, since one alone need not be repeated for its samples.
    """
    x, at_once = observe(model, pixels, indices, seed), chunk * len(pixels)
    laplace = laplace_proposal(model, x) if proposal == "laplace" else None
    posterior = laplace.posterior if laplace else model.encode(x)
    images = max(1, at_once // k)
    results = []
    for first in range(0, len(pixels), images):
        part = slice(first, first + images)
        normals = [_generator(seed, index, _NORMAL) for index in indices[part]]
        tails = [_generator(seed, index, _CHI_SQUARED) for index in indices[part]] if laplace else []
        pieces = []
        for start in range(0, k, at_once):
            size = (min(at_once, k - start), model.latent_dim)
            noise = np.stack([g.standard_normal(size, dtype=np.float32) for g in normals], axis=1)
            normal = torch.from_numpy(noise).to(posterior.mean)
            if laplace is None:
                pieces.append(log_weights(model, x[part], normal, posterior[part]))
            else:
                chi_squared = np.stack([g.chisquare(DEGREES, size[0]) for g in tails], axis=1)
                spread = torch.from_numpy(chi_squared).to(normal)
                pieces.append(laplace[part].log_weights(model, x[part], normal, spread, start, k))
        results.append(importance_log_likelihood(*pieces))
    estimates, errors = zip(*results, strict=True)
    return torch.cat(estimates), torch.cat(errors)


@torch.no_grad()
def annealed_log_likelihood(
    model: VAE, x: Tensor, temperatures: Tensor, generator: torch.Generator, *, chains: int, leapfrog_steps: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x) of x [B, C, H, W] (data space), its standard error over the chains, and a move's acceptance: [B] each.

    By annealed importance sampling (Neal 2001; Wu et al. 2017, arXiv:1611.04273): along
    log f_b(z) = (1 - b) log q(z|x) + b log p(x, z) a chain sums (b_t - b_(t-1)) (log p(x, z) - log q(z|x)) between
    moves that leave f_(b_t) invariant. The mean of the exponential of that sum is p(x), however few the temperatures.
    Moves are Hamiltonian (Neal 2011, arXiv:1206.1901), preconditioned by q's standard deviations, their step sizes
    tuned on separate chains, so without bias.

    In nats, float64, a lower bound in expectation. temperatures [T + 1] rise from 0 to 1. Costs
    2 chains B T (leapfrog_steps + 1) gradients of the decoder, half of them for tuning; memory: chains * B images.
    """
    path = AnnealingPath(model, x, model.encode(x), leapfrog_steps, generator)
    step_sizes = path.tune(temperatures, chains)
    log_weights, acceptance = path.anneal(path.draw(chains), temperatures, step_sizes)
    return *importance_log_likelihood(log_weights), acceptance


@dataclass(frozen=True)
class AnnealingPath:
    """log f_b(z) for images x [B, C, H, W], and Markov chains z [C, B, Z] along it, to be run without gradients."""

    model: VAE
    x: Tensor
    posterior: DiagonalGaussian  # q(z|x)
    leapfrog_steps: int
    generator: torch.Generator

    def draw(self, chains: int) -> Tensor:
        """Samples of q(z|x) for each image: [C, B, Z]."""
        mean = self.posterior.mean
        noise = torch.randn(chains, *mean.shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        return self.posterior.rsample(noise)

    def tune(self, temperatures: Tensor, chains: int) -> Tensor:
        """Step sizes [T - 1, B] with the target's acceptance rate, one a temperature strictly between the ends."""
        z = self.draw(chains)
        step = torch.full_like(z[0, :, 0], FIRST_STEP)  # [B]
        step_sizes = [step.new_empty(0, len(step))]
        for temperature in temperatures[1:-1]:
            z, acceptance = self._move(z, temperature, step)
            step = step * torch.exp(TUNING_RATE * (acceptance.mean(0) - TARGET_ACCEPTANCE))
            step_sizes.append(step.unsqueeze(0))
        return torch.cat(step_sizes)

    def anneal(self, z: Tensor, temperatures: Tensor, step_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """log weights [C, B], float64, of chains begun at z [C, B, Z], and their mean acceptance [B]."""
        increments = temperatures.diff().to(z.device)  # [T]
        log_weights = increments[0] * self._log_ratio(z)
        accepted = torch.zeros_like(z[0, :, 0])  # [B]
        for temperature, increment, step in zip(temperatures[1:-1], increments[1:], step_sizes, strict=True):
            z, acceptance = self._move(z, temperature, step)
            log_weights += increment * self._log_ratio(z)
            accepted += acceptance.mean(0)
        return log_weights, accepted / max(len(step_sizes), 1)

    def _log_ratio(self, z: Tensor) -> Tensor:
        return (log_joint(self.model, self.x, z) - self.posterior.log_prob(z)).double()

    def _value_and_gradient(self, z: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """log f_b(z) [C, B] and its gradient in z [C, B, Z]."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = torch.lerp(self.posterior.log_prob(z), log_joint(self.model, self.x, z), temperature.to(z))
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def _move(self, z: Tensor, temperature: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """A Hamiltonian move that leaves f_b invariant: z [C, B, Z] -> z, and its acceptance probability [C, B]."""
        momentum = torch.randn(z.shape, generator=self.generator, dtype=z.dtype, device=z.device)
        height, gradient = self._value_and_gradient(z, temperature)
        energy = height - 0.5 * momentum.square().sum(-1)
        proposal, size = z, step.unsqueeze(-1) * torch.exp(0.5 * self.posterior.log_variance)  # [B, Z]
        for _ in range(self.leapfrog_steps):
            momentum = momentum + 0.5 * size * gradient
            proposal = proposal + size * momentum
            height, gradient = self._value_and_gradient(proposal, temperature)
            momentum = momentum + 0.5 * size * gradient
        rise = height - 0.5 * momentum.square().sum(-1) - energy  # [C, B]
        acceptance = torch.exp(rise.clamp(max=0)).nan_to_num(0.0)  # a diverged move is refused
        chosen = torch.rand(acceptance.shape, generator=self.generator, dtype=z.dtype, device=z.device) < acceptance
        return torch.where(chosen.unsqueeze(-1), proposal, z), acceptance
