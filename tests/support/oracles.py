"""Closed-form truths and brute force to hold the code against. All in float64, all in nats."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaeline.core.distributions import LOG_VARIANCE_BOUND
from vaeline.core.estimators import AnnealingPath, importance_log_likelihood
from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.priors import StandardNormal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@dataclass(frozen=True)
class ProbabilisticPCA:
    """x = W z + b + sigma e with orthogonal columns in W (Tipping & Bishop 1999): a VAE whose every term is known.

    p(x) = N(b, W W' + sigma^2 I); p(z|x) = N(M^-1 W'(x - b), sigma^2 M^-1) with M = W'W + sigma^2 I, diagonal here.
    """

    weight: Tensor  # [D, Z]
    bias: Tensor  # [D]
    sigma: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Images [count, 1, 1, D] of the model."""
        z = torch.randn(count, self.weight.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(count, len(self.bias), generator=generator, dtype=torch.float64)
        return (z @ self.weight.T + self.bias + self.sigma * noise)[:, None, None, :]

    def pixels(self, count: int, seed: int) -> np.ndarray:
        """Its images on [0, 1], rounded to 8 bits: [count, 1, 1, D]."""
        return (256 * self.sample(count, seeded(seed))).floor().clamp(0, 255).numpy().astype(np.uint8)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Exact log p(x): [B, 1, 1, D] -> [B]."""
        identity = torch.eye(len(self.bias), dtype=torch.float64)
        covariance = self.weight @ self.weight.T + self.sigma**2 * identity
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))

    def posterior(self) -> tuple[Tensor, Tensor]:
        """The linear map [Z, D] from x - b to the posterior's mean, and its log variances [Z]."""
        diagonal = self.weight.square().sum(0) + self.sigma**2  # of M
        return self.weight.T / diagonal[:, None], 2 * math.log(self.sigma) - diagonal.log()

    def vae(self, *, mean_error: float = 0.0, log_variance_error: float = 0.0) -> VAE:
        """The model as a VAE; without errors its encoder is the true posterior."""
        to_mean, log_variance = self.posterior()
        raw = LOG_VARIANCE_BOUND * torch.atanh((log_variance + log_variance_error) / LOG_VARIANCE_BOUND)
        pixels, latent_dim = self.weight.shape
        encoder = nn.Linear(pixels, 2 * latent_dim, dtype=torch.float64)
        decoder = nn.Linear(latent_dim, pixels, dtype=torch.float64)
        with torch.no_grad():
            encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            encoder.bias.copy_(torch.cat([mean_error - to_mean @ self.bias, raw]))
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.bias)
        likelihood = Gaussian(self.sigma)
        likelihood.log_sigma = torch.tensor(math.log(self.sigma), dtype=torch.float64)
        return VAE(
            nn.Sequential(nn.Flatten(), encoder),
            nn.Sequential(decoder, nn.Unflatten(1, (1, 1, pixels))),
            likelihood,
            StandardNormal(),
            shape=(1, 1, pixels),
            latent_dim=latent_dim,
        )


def probabilistic_pca(
    pixels: int = 6, scales: tuple[float, ...] = (1.5, 0.8), sigma: float = 0.5, mean: float | None = None
) -> ProbabilisticPCA:
    """A fixed example with as many latent dimensions as scales; `mean`: of all pixels, else they differ."""
    basis, _ = torch.linalg.qr(normal(pixels, len(scales)))
    bias = torch.linspace(-1, 1, pixels, dtype=torch.float64)
    return ProbabilisticPCA(
        basis * torch.tensor(scales, dtype=torch.float64), bias if mean is None else bias.fill_(mean), sigma
    )


def integral(function: Callable[[Tensor], Tensor], low: float, high: float, points: int = 200_001) -> float:
    """Integral over [low, high] by Simpson's rule; `points` is odd."""
    x = torch.linspace(low, high, points, dtype=torch.float64)
    weights = torch.full_like(x, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return float((function(x) * weights).sum() * (high - low) / (points - 1) / 3)


@torch.no_grad()
def on_a_grid(model: VAE, x: Tensor, reach: float, points: int) -> Tensor:
    """Log of the integral of p(z) p(x|z) over [-reach, reach]^2: [B]."""
    axis = torch.linspace(-reach, reach, points, dtype=x.dtype)
    z = torch.cartesian_prod(axis, axis)
    output, log_prior = model.decode(z), model.prior.log_prob(z)
    joint = torch.stack([model.likelihood.log_prob(image.expand_as(output), output) + log_prior for image in x])
    return joint.double().logsumexp(1) + 2 * math.log(2 * reach / (points - 1))


def kl_by_quadrature(mean: float, log_variance: float) -> float:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) by numerical integration of q (log q - log p)."""
    q = torch.distributions.Normal(*torch.tensor([mean, math.exp(0.5 * log_variance)], dtype=torch.float64))
    p = torch.distributions.Normal(0.0, 1.0)
    reach = 12 * math.exp(0.5 * log_variance)
    return integral(lambda z: q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), mean - reach, mean + reach)


def within(values: Tensor, truth: Tensor | float, standard_errors: float = 4.0) -> bool:
    """Does the mean of independent values lie within so many standard errors of the truth?"""
    errors = values.detach().std(0) / math.sqrt(len(values))
    return bool(((values.detach().mean(0) - truth).abs() <= standard_errors * errors).all())


def sigmoidal_temperatures(steps: int, steepness: float = 4.0) -> Tensor:
    """From 0 to 1 along a logistic curve, slow at both ends (Grosse et al. 2015, arXiv:1511.02543): [steps + 1]."""
    curve = torch.sigmoid(steepness * torch.linspace(-1, 1, steps + 1, dtype=torch.float64))
    return (curve - curve[0]) / (curve[-1] - curve[0])


@torch.no_grad()
def reverse_annealed_log_likelihood(
    model: VAE, x: Tensor, z: Tensor, temperatures: Tensor, generator: torch.Generator
) -> Tensor:
    """log p(x) from above in expectation: chains back from exact samples z [C, B, Z] of p(z|x).

    Bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543).
    """
    path = AnnealingPath(model, x, model.encode(x), 10, generator)
    step_sizes = path.tune(temperatures, len(z))
    weights, _ = path.anneal(z, temperatures.flip(0), step_sizes.flip(0))
    return -importance_log_likelihood(weights)[0]  # the mean of the weights is 1 / p(x)
