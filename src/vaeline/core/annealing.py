"""log p(x) by annealed importance sampling (Neal 2001; Wu et al. 2017, arXiv:1611.04273): the second opinion.

Along log f_b(z) = (1 - b) log r(z) + b log p(x, z), from a normalised start r at b = 0 to the posterior, unnormalised,
at b = 1, a chain sums (b_t - b_(t-1)) (log p(x, z) - log r(z)) between moves that leave f_(b_t) in place. The mean of
the exponential of that sum is p(x), however few the temperatures. Moves are Hamiltonian (Neal 2011,
arXiv:1206.1901), their step sizes tuned on chains of their own and then frozen, so that nothing is biased.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaeline.core.estimators import importance_log_likelihood
from vaeline.core.model import VAE
from vaeline.core.objectives import conditional_log_likelihood

Start = Literal["prior", "posterior"]  # r(z): p(z), or q(z|x)

TARGET_ACCEPTANCE = 0.65  # of a Hamiltonian move (Beskos et al. 2013)
FIRST_STEP, TUNING_RATE = 0.2, 0.3


@dataclass(frozen=True)
class Annealed:
    """An estimate of log p(x) in nats per image, float64."""

    log_likelihood: Tensor  # [B]
    standard_error: Tensor  # [B], over the chains
    acceptance: Tensor  # [B], the mean over chains and moves


def linear_temperatures(steps: int) -> Tensor:
    """0, 1/steps, ..., 1: [steps + 1], float64."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def sigmoidal_temperatures(steps: int, steepness: float = 4.0) -> Tensor:
    """From 0 to 1 along a logistic curve, slow at both ends (Grosse et al. 2015, arXiv:1511.02543): [steps + 1]."""
    curve = torch.sigmoid(steepness * (2 * linear_temperatures(steps) - 1))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def annealed_log_likelihood(
    model: VAE,
    x: Tensor,
    temperatures: Tensor,
    generator: torch.Generator,
    *,
    chains: int,
    leapfrog_steps: int = 10,
    start: Start = "prior",
) -> Annealed:
    """log p(x) of x [B, C, H, W] (data space), a lower bound in expectation, from `chains` chains an image.

    temperatures [T + 1] rise from 0 to 1; start "posterior" begins at q(z|x), which is nearer. Costs
    2 chains B T (leapfrog_steps + 1) gradients of the decoder, half of them for tuning; memory holds chains * B images.
    """
    path = _path(model, x, start)
    moves = _tuned(path, temperatures, generator, chains, leapfrog_steps)
    log_weights, acceptance = _anneal(path, path.draw(generator, chains), temperatures, moves, generator)
    return Annealed(*importance_log_likelihood(log_weights), acceptance)


def reverse_annealed_log_likelihood(
    model: VAE,
    x: Tensor,
    z: Tensor,
    temperatures: Tensor,
    generator: torch.Generator,
    *,
    leapfrog_steps: int = 10,
    start: Start = "prior",
) -> Annealed:
    """log p(x) from above, in expectation: chains that run back from exact samples of p(z|x), z [C, B, Z].

    Such samples are at hand for simulated data, z ~ p(z), x ~ p(x|z): bidirectional Monte Carlo (Grosse et al. 2015,
    arXiv:1511.02543). The standard error holds for independent samples; with one sample repeated it is too small.
    """
    path = _path(model, x, start)
    moves = _tuned(path, temperatures, generator, len(z), leapfrog_steps)
    log_weights, acceptance = _anneal(path, z, temperatures.flip(0), moves.reversed(), generator)
    inverse, standard_error = importance_log_likelihood(log_weights)  # the mean of exp is 1 / p(x)
    return Annealed(-inverse, standard_error, acceptance)


def posterior_gap(log_likelihood: Tensor, standard_error: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q(z|x) || p(z|x)) = log p(x) - ELBO >= 0, and its standard error, in nats: [B], [B].

    log p(x) [B] and its error from one set of samples, log w [K, B] of `estimators.log_weights`, K >= 2, from another.
    """
    log_weights = log_weights.double()
    elbo_error = log_weights.std(0) / math.sqrt(len(log_weights))
    return log_likelihood - log_weights.mean(0), torch.hypot(standard_error, elbo_error)


Density = Callable[[Tensor], Tensor]  # z [C, B, Z] -> log-density [C, B]


@dataclass(frozen=True)
class _Path:
    """The two ends of the annealing path."""

    draw: Callable[[torch.Generator, int], Tensor]  # C samples of r for each image: [C, B, Z]
    log_start: Density  # log r(z)
    log_joint: Density  # log p(x, z)

    def log_ratio(self, z: Tensor) -> Tensor:
        """log p(x, z) - log r(z): [C, B]."""
        with torch.no_grad():
            return self.log_joint(z) - self.log_start(z)

    def value_and_gradient(self, z: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """log f_b(z) [C, B] and its gradient in z [C, B, Z]."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = torch.lerp(self.log_start(z), self.log_joint(z), temperature.to(z))
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient


def _path(model: VAE, x: Tensor, start: Start) -> _Path:
    with torch.no_grad():
        posterior = model.encode(x)
    mean = posterior.mean

    def draw(generator: torch.Generator, chains: int) -> Tensor:
        noise = torch.randn(chains, *mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        with torch.no_grad():
            return model.prior.sample(noise) if start == "prior" else posterior.rsample(noise)

    def log_joint(z: Tensor) -> Tensor:
        return model.prior.log_prob(z) + conditional_log_likelihood(model, x, z)

    return _Path(draw, model.prior.log_prob if start == "prior" else posterior.log_prob, log_joint)


@dataclass(frozen=True)
class _Moves:
    """One Hamiltonian move a temperature strictly between the ends."""

    step_sizes: Tensor  # [T - 1, B]
    leapfrog_steps: int

    def reversed(self) -> "_Moves":
        return _Moves(self.step_sizes.flip(0), self.leapfrog_steps)


def _tuned(path: _Path, temperatures: Tensor, generator: torch.Generator, chains: int, leapfrog_steps: int) -> _Moves:
    """Step sizes that each image's chains accept at the target's rate: one run along the path, thrown away."""
    z = path.draw(generator, chains)
    step = torch.full_like(z[0, :, 0], FIRST_STEP)  # [B]
    step_sizes = []
    for temperature in temperatures[1:-1]:
        z, acceptance = _move(path, z, temperature, step, leapfrog_steps=leapfrog_steps, generator=generator)
        step = step * torch.exp(TUNING_RATE * (acceptance.mean(0) - TARGET_ACCEPTANCE))
        step_sizes.append(step)
    return _Moves(torch.stack(step_sizes) if step_sizes else step.new_empty(0, len(step)), leapfrog_steps)


def _anneal(
    path: _Path, z: Tensor, temperatures: Tensor, moves: _Moves, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """log weights [C, B], float64, of chains begun at z [C, B, Z], and their mean acceptance [B]."""
    increments = temperatures.diff()  # [T]
    log_weights = increments[0].to(z.device) * path.log_ratio(z).double()
    accepted = torch.zeros_like(z[0, :, 0])  # [B]
    for temperature, increment, step in zip(temperatures[1:-1], increments[1:], moves.step_sizes, strict=True):
        z, acceptance = _move(path, z, temperature, step, leapfrog_steps=moves.leapfrog_steps, generator=generator)
        log_weights += increment.to(z.device) * path.log_ratio(z).double()
        accepted += acceptance.mean(0)
    return log_weights, accepted / max(len(moves.step_sizes), 1)


def _move(
    path: _Path, z: Tensor, temperature: Tensor, step: Tensor, *, leapfrog_steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A Hamiltonian move that leaves f_b in place: z [C, B, Z] -> z, and its probability of acceptance [C, B]."""
    momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    height, gradient = path.value_and_gradient(z, temperature)
    energy = height - 0.5 * momentum.square().sum(-1)
    proposal, size = z, step.unsqueeze(-1)  # [B, 1]
    for _ in range(leapfrog_steps):
        momentum = momentum + 0.5 * size * gradient
        proposal = proposal + size * momentum
        height, gradient = path.value_and_gradient(proposal, temperature)
        momentum = momentum + 0.5 * size * gradient
    rise = height - 0.5 * momentum.square().sum(-1) - energy  # [C, B]
    acceptance = torch.exp(rise.clamp(max=0)).nan_to_num(0.0)  # a diverged move is refused
    chosen = torch.rand(acceptance.shape, generator=generator, dtype=z.dtype, device=z.device) < acceptance
    return torch.where(chosen.unsqueeze(-1), proposal, z), acceptance
