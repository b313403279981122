"""log p(x) by annealed importance sampling (Neal 2001; Wu et al. 2017, arXiv:1611.04273).

Along log f_b(z) = (1 - b) log r(z) + b log p(x, z), from a normalised start r at b = 0 to the unnormalised posterior
at b = 1, a chain sums (b_t - b_(t-1)) (log p(x, z) - log r(z)) between moves that leave f_(b_t) invariant. The mean of
the exponential of that sum is p(x), however few the temperatures. Moves are Hamiltonian (Neal 2011,
arXiv:1206.1901), their step sizes tuned on separate chains and then frozen, so that nothing is biased.
"""

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
    path = AnnealingPath(model, x, start, leapfrog_steps, generator)
    step_sizes = path.tune(temperatures, chains)
    log_weights, acceptance = path.anneal(path.draw(chains), temperatures, step_sizes)
    return Annealed(*importance_log_likelihood(log_weights), acceptance)


class AnnealingPath:
    """log f_b(z) for images x [B, C, H, W], and Markov chains z [C, B, Z] along it."""

    def __init__(self, model: VAE, x: Tensor, start: Start, leapfrog_steps: int, generator: torch.Generator) -> None:
        self.model, self.x, self.leapfrog_steps, self.generator = model, x, leapfrog_steps, generator
        with torch.no_grad():
            self.posterior = model.encode(x)
        self.from_prior = start == "prior"
        self.log_start = model.prior.log_prob if self.from_prior else self.posterior.log_prob  # log r(z)

    def draw(self, chains: int) -> Tensor:
        """Samples of r for each image: [C, B, Z]."""
        mean = self.posterior.mean
        noise = torch.randn(chains, *mean.shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        with torch.no_grad():
            return self.model.prior.sample(noise) if self.from_prior else self.posterior.rsample(noise)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z): [C, B]."""
        return self.model.prior.log_prob(z) + conditional_log_likelihood(self.model, self.x, z)

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

    def tune(self, temperatures: Tensor, chains: int) -> Tensor:
        """Step sizes [T - 1, B] with the target's acceptance rate, one a temperature strictly between the ends."""
        z = self.draw(chains)
        step = torch.full_like(z[0, :, 0], FIRST_STEP)  # [B]
        step_sizes = [step.new_empty(0, len(step))]
        for temperature in temperatures[1:-1]:
            z, acceptance = self.move(z, temperature, step)
            step = step * torch.exp(TUNING_RATE * (acceptance.mean(0) - TARGET_ACCEPTANCE))
            step_sizes.append(step.unsqueeze(0))
        return torch.cat(step_sizes)

    def anneal(self, z: Tensor, temperatures: Tensor, step_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """log weights [C, B], float64, of chains begun at z [C, B, Z], and their mean acceptance [B]."""
        increments = temperatures.diff()  # [T]
        log_weights = increments[0].to(z.device) * self.log_ratio(z).double()
        accepted = torch.zeros_like(z[0, :, 0])  # [B]
        for temperature, increment, step in zip(temperatures[1:-1], increments[1:], step_sizes, strict=True):
            z, acceptance = self.move(z, temperature, step)
            log_weights += increment.to(z.device) * self.log_ratio(z).double()
            accepted += acceptance.mean(0)
        return log_weights, accepted / max(len(step_sizes), 1)

    def move(self, z: Tensor, temperature: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """A Hamiltonian move that leaves f_b invariant: z [C, B, Z] -> z, and its acceptance probability [C, B]."""
        momentum = torch.randn(z.shape, generator=self.generator, dtype=z.dtype, device=z.device)
        height, gradient = self.value_and_gradient(z, temperature)
        energy = height - 0.5 * momentum.square().sum(-1)
        proposal, size = z, step.unsqueeze(-1)  # [B, 1]
        for _ in range(self.leapfrog_steps):
            momentum = momentum + 0.5 * size * gradient
            proposal = proposal + size * momentum
            height, gradient = self.value_and_gradient(proposal, temperature)
            momentum = momentum + 0.5 * size * gradient
        rise = height - 0.5 * momentum.square().sum(-1) - energy  # [C, B]
        acceptance = torch.exp(rise.clamp(max=0)).nan_to_num(0.0)  # a diverged move is refused
        chosen = torch.rand(acceptance.shape, generator=self.generator, dtype=z.dtype, device=z.device) < acceptance
        return torch.where(chosen.unsqueeze(-1), proposal, z), acceptance
