"""Annealed importance sampling against exact log p(x): probabilistic PCA, and a crooked decoder on a fine grid."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from oracles import (
    ProbabilisticPCA,
    posterior_gap,
    probabilistic_pca,
    reverse_annealed_log_likelihood,
    sigmoidal_temperatures,
)
from vaeline.core.annealing import Start, annealed_log_likelihood, linear_temperatures
from vaeline.core.estimators import importance_log_likelihood, log_weights
from vaeline.core.model import VAE

STARTS: tuple[Start, ...] = get_args(Start)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrong_encoder() -> tuple[ProbabilisticPCA, VAE]:
    pca = probabilistic_pca()
    return pca, pca.vae(mean_error=0.3, log_variance_error=0.5)


def exact_posterior_samples(pca: ProbabilisticPCA, x: Tensor, chains: int) -> Tensor:
    to_mean, log_variance = pca.posterior()
    mean = (x.flatten(1) - pca.bias) @ to_mean.T
    return mean + torch.exp(0.5 * log_variance) * torch.randn(chains, *mean.shape, generator=seeded(9), dtype=x.dtype)


def crooked_decoder() -> VAE:
    """A two-dimensional latent space bent by a random tanh network, with the encoder of probabilistic PCA."""
    _, model = wrong_encoder()
    torch.manual_seed(4)
    model.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (1, 1, 6))).double()
    with torch.no_grad():
        model.decoder[0].weight.mul_(2)
        model.decoder[2].weight.mul_(3)
    return model


def log_likelihood_on_a_grid(model: VAE, x: Tensor, reach: float = 8.0, points: int = 801) -> Tensor:
    """Log of the integral of p(z) p(x|z) over [-reach, reach]^2 by the trapezoidal rule: [B]."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    output, log_prior = model.decode(z), model.prior.log_prob(z)
    area = 2 * math.log(2 * reach / (points - 1))
    joint = [model.likelihood.log_prob(image.expand_as(output), output) + log_prior for image in x.split(1)]
    return torch.stack([values.logsumexp(0) + area for values in joint]).detach()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("temperatures", [linear_temperatures(5), sigmoidal_temperatures(40)])
def test_the_mean_weight_is_p_x_however_few_the_temperatures(start: Start, temperatures: Tensor) -> None:
    pca, model = wrong_encoder()
    x = pca.sample(6, seeded(1))
    found = annealed_log_likelihood(model, x, temperatures, seeded(2), chains=2000, leapfrog_steps=5, start=start)
    score = (found.log_likelihood - pca.log_likelihood(x)) / found.standard_error
    assert score.abs().max() < 4
    assert found.standard_error.max() < 0.1


@pytest.mark.parametrize("start", STARTS)
def test_single_chains_bracket_log_p_and_more_temperatures_tighten_the_bracket(start: Start) -> None:
    pca, model = wrong_encoder()
    x = pca.sample(4, seeded(1))
    many = x.repeat(400, 1, 1, 1)  # 400 estimates an image, of one chain each
    truth, posterior = pca.log_likelihood(many), exact_posterior_samples(pca, many, 1)
    widths = []
    for steps in (3, 30):
        temperatures = sigmoidal_temperatures(steps)
        below = annealed_log_likelihood(model, many, temperatures, seeded(3), chains=1, start=start).log_likelihood
        above, _ = reverse_annealed_log_likelihood(model, many, posterior, temperatures, seeded(4), start)
        low, high = below - truth, above - truth
        assert low.mean() < 4 * low.std() / math.sqrt(len(many))
        assert high.mean() > -4 * high.std() / math.sqrt(len(many))
        widths.append(float(high.mean() - low.mean()))
    assert widths[0] > 0.05  # three temperatures cannot close it
    assert 0 < widths[1] < widths[0] / 3


def test_moves_are_accepted_about_as_often_as_asked() -> None:
    pca, model = wrong_encoder()
    found = annealed_log_likelihood(model, pca.sample(4, seeded(1)), linear_temperatures(300), seeded(6), chains=20)
    assert ((found.acceptance > 0.55) & (found.acceptance < 0.8)).all()


def test_annealing_agrees_with_importance_sampling_and_a_grid_on_a_crooked_decoder() -> None:
    model = crooked_decoder()
    x = probabilistic_pca().sample(4, seeded(1))
    truth = log_likelihood_on_a_grid(model, x)
    annealed = annealed_log_likelihood(model, x, sigmoidal_temperatures(100), seeded(7), chains=200)
    noise = torch.randn(50_000, 4, 2, generator=seeded(8), dtype=torch.float64)
    sampled, error = importance_log_likelihood(log_weights(model, x, noise).detach())
    assert ((annealed.log_likelihood - truth) / annealed.standard_error).abs().max() < 4
    assert ((annealed.log_likelihood - sampled) / torch.hypot(annealed.standard_error, error)).abs().max() < 4
    assert annealed.standard_error.max() < 0.2


def test_the_gap_is_the_divergence_from_the_true_posterior() -> None:
    pca, model = wrong_encoder()
    x = pca.sample(50, seeded(1))
    found = annealed_log_likelihood(model, x, sigmoidal_temperatures(30), seeded(2), chains=100, start="posterior")
    noise = torch.randn(500, 50, 2, generator=seeded(3), dtype=torch.float64)
    gap, error = posterior_gap(found.log_likelihood, found.standard_error, log_weights(model, x, noise).detach())
    _, log_variance = pca.posterior()
    exact = 0.5 * (math.expm1(0.5) - 0.5 + 0.3**2 * torch.exp(-log_variance)).sum()  # the same for every image
    assert ((gap - exact) / error).abs().max() < 4
    assert abs(float((gap.mean() - exact) / (error.square().sum().sqrt() / 50))) < 4


def test_the_gap_is_zero_at_the_true_posterior() -> None:
    pca = probabilistic_pca()
    model, x = pca.vae(), pca.sample(5, seeded(1))
    noise = torch.randn(20, 5, 2, generator=seeded(3), dtype=torch.float64)
    exact = pca.log_likelihood(x)
    gap, error = posterior_gap(exact, torch.full_like(exact, 0.5), log_weights(model, x, noise).detach())
    assert torch.allclose(gap, torch.zeros_like(gap), atol=1e-10)
    assert torch.allclose(error, torch.full_like(error, 0.5))  # log p(x)'s own: every log weight is log p(x)


def test_a_move_that_diverges_is_refused() -> None:
    pca, model = wrong_encoder()
    with torch.no_grad():
        model.decoder[0].weight.mul_(1e100)  # the first steps leap to infinity and to NaN
    x = pca.sample(3, seeded(1))
    found = annealed_log_likelihood(model, x, linear_temperatures(10), seeded(2), chains=5)
    assert found.log_likelihood.isfinite().all()
    assert (found.acceptance < 0.1).all()


def test_the_same_generator_gives_the_same_estimate_and_no_gradients_are_left() -> None:
    pca, model = wrong_encoder()
    x = pca.sample(3, seeded(1))
    one, two = (annealed_log_likelihood(model, x, linear_temperatures(5), seeded(2), chains=4) for _ in range(2))
    assert torch.equal(one.log_likelihood, two.log_likelihood)
    assert not one.log_likelihood.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
