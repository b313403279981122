"""Annealed importance sampling against exact log p(x): probabilistic PCA, and a crooked decoder on a fine grid."""

import math

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
from vaeline.core.estimators import annealed_log_likelihood, importance_log_likelihood, log_weights
from vaeline.core.model import VAE


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_temperatures(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def wrong_encoder() -> tuple[ProbabilisticPCA, VAE]:
    pca = probabilistic_pca()
    return pca, pca.vae(mean_error=0.3, log_variance_error=0.5)


@pytest.mark.parametrize("temperatures", [linear_temperatures(5), sigmoidal_temperatures(40)])
def test_the_mean_weight_is_p_x_however_few_the_temperatures(temperatures: Tensor) -> None:
    pca, model = wrong_encoder()
    x = pca.sample(3, seeded(1))
    found, error, _ = annealed_log_likelihood(model, x, temperatures, seeded(2), chains=1000, leapfrog_steps=5)
    assert ((found - pca.log_likelihood(x)) / error).abs().max() < 4
    assert error.max() < 0.1


def test_single_chains_bracket_log_p_and_more_temperatures_tighten_the_bracket() -> None:
    pca, model = wrong_encoder()
    many = pca.sample(4, seeded(1)).repeat(300, 1, 1, 1)  # 300 estimates an image, of one chain each
    to_mean, log_variance = pca.posterior()
    noise = torch.randn(1, len(many), 2, generator=seeded(9), dtype=many.dtype)
    posterior = (many.flatten(1) - pca.bias) @ to_mean.T + torch.exp(0.5 * log_variance) * noise
    widths = []
    for steps in (3, 30):
        temperatures = sigmoidal_temperatures(steps)
        below, _, _ = annealed_log_likelihood(model, many, temperatures, seeded(3), chains=1)
        above = reverse_annealed_log_likelihood(model, many, posterior, temperatures, seeded(4))
        low, high = below - pca.log_likelihood(many), above - pca.log_likelihood(many)
        assert low.mean() < 4 * low.std() / math.sqrt(len(many))
        assert high.mean() > -4 * high.std() / math.sqrt(len(many))
        widths.append(float(high.mean() - low.mean()))
    assert widths[0] > 0.05  # three temperatures cannot close it
    assert 0 < widths[1] < widths[0] / 3


def test_moves_are_accepted_about_as_often_as_asked() -> None:
    pca, model = wrong_encoder()
    x = pca.sample(4, seeded(1))
    _, _, acceptance = annealed_log_likelihood(model, x, linear_temperatures(300), seeded(6), chains=20)
    assert ((acceptance > 0.55) & (acceptance < 0.8)).all()


def test_annealing_agrees_with_importance_sampling_and_a_grid_on_a_crooked_decoder() -> None:
    """A two-dimensional latent space bent by a random tanh network, with an encoder that knows nothing."""
    _, model = wrong_encoder()
    torch.manual_seed(4)
    model.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (1, 1, 6))).double()
    with torch.no_grad():
        model.decoder[0].weight.mul_(2)
        model.decoder[2].weight.mul_(3)
        for parameter in model.encoder.parameters():
            parameter.zero_()  # q(z|x) = p(z)
    x = probabilistic_pca().sample(4, seeded(1))
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    output, log_cell = model.decode(z), model.prior.log_prob(z) + 2 * math.log(16 / 400)
    joint = torch.stack([model.likelihood.log_prob(image.expand_as(output), output) + log_cell for image in x.split(1)])
    truth = joint.logsumexp(1).detach()
    annealed, annealed_error, _ = annealed_log_likelihood(model, x, sigmoidal_temperatures(100), seeded(7), chains=200)
    noise = torch.randn(20_000, 4, 2, generator=seeded(8), dtype=torch.float64)
    sampled, error = importance_log_likelihood(log_weights(model, x, noise).detach())
    assert ((annealed - truth) / annealed_error).abs().max() < 4
    assert ((annealed - sampled) / torch.hypot(annealed_error, error)).abs().max() < 4
    assert annealed_error.max() < 0.2


def test_the_gap_is_the_divergence_from_the_true_posterior() -> None:
    pca, model = wrong_encoder()
    x = pca.sample(50, seeded(1))
    log_p, log_p_error, _ = annealed_log_likelihood(model, x, sigmoidal_temperatures(30), seeded(2), chains=100)
    noise = torch.randn(500, 50, 2, generator=seeded(3), dtype=torch.float64)
    gap, error = posterior_gap(log_p, log_p_error, log_weights(model, x, noise).detach())
    _, log_variance = pca.posterior()
    exact = 0.5 * (math.expm1(0.5) - 0.5 + 0.3**2 * torch.exp(-log_variance)).sum()  # the same for every image
    assert ((gap - exact) / error).abs().max() < 4
    assert abs(float((gap.mean() - exact) / (error.square().sum().sqrt() / 50))) < 4


def test_a_move_that_diverges_is_refused_and_no_gradients_are_left() -> None:
    pca, model = wrong_encoder()
    with torch.no_grad():
        model.decoder[0].weight.mul_(1e100)  # the first steps leap to infinity and to NaN
    x = pca.sample(3, seeded(1))
    found, _, acceptance = annealed_log_likelihood(model, x, linear_temperatures(10), seeded(2), chains=5)
    assert found.isfinite().all()
    assert (acceptance < 0.1).all()
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
