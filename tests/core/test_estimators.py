"""Importance sampling and annealing against exact log p(x): probabilistic PCA, and a crooked decoder on a fine grid."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oracles import (
    normal,
    on_a_grid,
    probabilistic_pca,
    reverse_annealed_log_likelihood,
    seeded,
    sigmoidal_temperatures,
    within,
)
from small_training import model
from vaeline.core import estimators
from vaeline.core.estimators import annealed_log_likelihood, importance_log_likelihood, log_likelihood
from vaeline.core.model import VAE
from vaeline.core.objectives import log_weights
from vaeline.training.build import build_model

PCA = probabilistic_pca()
X = PCA.sample(3, seeded(1))


def test_the_mean_weight_is_unbiased_for_p_of_x_and_the_standard_error_the_scatter_of_estimates() -> None:
    """Mistake 3: weights of +loss, or with the closed-form KL in place of log q - log p at the sample."""
    weights = log_weights(PCA.vae(log_variance_error=0.7), X, normal(20_000, 3, 2))
    assert within(weights.exp() / PCA.log_likelihood(X).exp(), 1.0)
    weights = log_weights(PCA.vae(log_variance_error=0.5), X, normal(300 * 200, 3, 2)).view(200, 900)
    estimates, errors = (values.view(300, 3) for values in importance_log_likelihood(weights))
    assert torch.allclose(estimates.std(0), errors.mean(0), rtol=0.15)


def test_weights_are_averaged_in_float64_without_overflow_in_one_piece_or_several() -> None:
    """Mistake 5: the log of the summed weights is optimistic by log k."""
    weights = torch.tensor([[-1e5, 1e5], [-1e5 + math.log(3), 1e5]], dtype=torch.float64)
    estimate, error = importance_log_likelihood(weights)
    assert estimate.tolist() == pytest.approx([-1e5 + math.log(2), 1e5])
    assert float(importance_log_likelihood(torch.full((3, 1), -16384.0))[0]) == pytest.approx(-16384, abs=1e-9)
    pieces = importance_log_likelihood(*weights.split(1))
    assert torch.allclose(torch.stack(pieces), torch.stack([estimate, error]))
    estimate, error = importance_log_likelihood(torch.tensor([[-3.0]]))
    assert float(estimate) == -3.0
    assert error.isnan()  # one sample shows no spread


def small(kind: str) -> VAE:
    return build_model(model({"kind": kind}), (1, 4, 4), "elbo", seed=0)


def images(count: int, binary: bool = False) -> Tensor:
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    return (pixels > 127).to(torch.uint8) * 255 if binary else pixels


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "continuous-bernoulli", "discretised-logistic"])
def test_log_likelihood_depends_neither_on_the_batch_nor_on_the_order(kind: str) -> None:
    """Mistake 6: NLL that depends on the batch size."""
    model = small(kind)
    pixels, order = images(200, binary=model.likelihood.measure == "binary"), torch.arange(200)

    def in_batches(order: Tensor, size: int, chunk: int) -> tuple[Tensor, Tensor]:
        parts = [log_likelihood(model, pixels[i], i.tolist(), k=5, seed=3, chunk=chunk) for i in order.split(size)]
        estimates, errors = zip(*parts, strict=True)
        return torch.cat(estimates), torch.cat(errors)

    reference = in_batches(order, 200, 5)
    for size, chunk in [(1, 5), (7, 2), (100, 1), (200, 1000)]:
        estimate, error = in_batches(order, size, chunk)
        assert torch.allclose(estimate, reference[0], rtol=1e-5, atol=1e-4)
        assert torch.allclose(error, reference[1], rtol=1e-3, atol=1e-4)
    assert torch.allclose(in_batches(order.flip(0), 30, 4)[0].flip(0), reference[0], atol=1e-4)
    assert reference[0].dtype == torch.float64
    assert model.likelihood.measure == "density" or (reference[0] < 0).all()  # log of a probability


def test_log_likelihood_is_the_estimate_of_its_own_noise() -> None:
    model, pixels, indices = small("continuous-bernoulli"), images(4), [5, 6, 7, 8]
    found = log_likelihood(model, pixels, indices, k=30, seed=2, chunk=7)
    x = model.likelihood.observe(pixels, estimators.per_image_uniform(2, indices, (1, 4, 4)))
    with torch.no_grad():
        weights = log_weights(model, x, estimators.per_image_noise(2, indices, (30, 3)).transpose(0, 1))
    for one, other in zip(found, importance_log_likelihood(weights), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_log_likelihood_decodes_each_sample_once_and_no_more_than_a_chunk_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mistake 6: NLL that floors the sample count."""
    model, decoded = small("discretised-logistic"), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: decoded.append(len(z)) or decode(z))
    for k in (10, 24, 25, 1000):  # memory does not grow with k
        decoded.clear()
        log_likelihood(model, images(6), range(6), k=k, seed=0, chunk=4)
        assert max(decoded) <= 4 * 6
        assert sum(decoded) == 6 * k


@pytest.mark.parametrize("noise", [estimators.per_image_noise, estimators.per_image_uniform])
def test_noise_depends_on_seed_and_image_alone(noise: Callable[..., Tensor]) -> None:
    rows = noise(2**63 - 1, [3, 2**40, 4], (2, 5))
    assert torch.equal(noise(2**63 - 1, [4], (2, 5))[0], rows[2])
    assert not torch.equal(noise(2, [3], (2, 5))[0], rows[0])
    assert len(rows.unique()) == 30
    assert rows.dtype == torch.float32


def test_noise_has_its_distribution_and_the_two_kinds_do_not_share_random_bits() -> None:
    normals, uniforms = (
        noise(1, range(200), (500,)) for noise in (estimators.per_image_noise, estimators.per_image_uniform)
    )
    assert within(normals.double().flatten(), 0.0)
    assert within(normals.double().flatten().square(), 1.0)
    assert within(uniforms.double().flatten(), 0.5)
    assert within((uniforms.double().flatten() - 0.5).square(), 1 / 12)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    sizes = normals.abs()[:, 20:400].flatten()  # large where the bits behind it are
    for shift in range(-16, 17):
        pair = torch.stack([sizes, uniforms[:, 20 + shift : 400 + shift].flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


def linear_temperatures(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def wrong_encoder() -> VAE:
    return PCA.vae(mean_error=0.3, log_variance_error=0.5)


@pytest.mark.parametrize("temperatures", [linear_temperatures(5), sigmoidal_temperatures(40)])
def test_the_mean_weight_is_p_x_however_few_the_temperatures(temperatures: Tensor) -> None:
    found, error, _ = annealed_log_likelihood(
        wrong_encoder(), X, temperatures, seeded(2), chains=1000, leapfrog_steps=5
    )
    assert ((found - PCA.log_likelihood(X)) / error).abs().max() < 4
    assert error.max() < 0.1


def test_single_chains_bracket_log_p_and_more_temperatures_tighten_the_bracket() -> None:
    model, many = wrong_encoder(), PCA.sample(4, seeded(1)).repeat(300, 1, 1, 1)  # 300 estimates, of one chain each
    to_mean, log_variance = PCA.posterior()
    posterior = (many.flatten(1) - PCA.bias) @ to_mean.T + torch.exp(0.5 * log_variance) * normal(1, len(many), 2)
    widths = []
    for steps in (3, 30):
        temperatures = sigmoidal_temperatures(steps)
        below, _, _ = annealed_log_likelihood(model, many, temperatures, seeded(3), chains=1)
        above = reverse_annealed_log_likelihood(model, many, posterior, temperatures, seeded(4))
        low, high = below - PCA.log_likelihood(many), above - PCA.log_likelihood(many)
        assert low.mean() < 4 * low.std() / math.sqrt(len(many))
        assert high.mean() > -4 * high.std() / math.sqrt(len(many))
        widths.append(float(high.mean() - low.mean()))
    assert widths[0] > 0.05  # three temperatures cannot close it
    assert 0 < widths[1] < widths[0] / 3


def test_moves_are_accepted_about_as_often_as_asked() -> None:
    _, _, acceptance = annealed_log_likelihood(wrong_encoder(), X, linear_temperatures(300), seeded(6), chains=20)
    assert ((acceptance > 0.55) & (acceptance < 0.8)).all()


def test_annealing_agrees_with_importance_sampling_and_a_grid_on_a_crooked_decoder() -> None:
    """A two-dimensional latent space bent by a random tanh network, with an encoder that knows nothing."""
    model = wrong_encoder()
    torch.manual_seed(4)
    model.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (1, 1, 6))).double()
    with torch.no_grad():
        model.decoder[0].weight.mul_(2)
        model.decoder[2].weight.mul_(3)
        for parameter in model.encoder.parameters():
            parameter.zero_()  # q(z|x) = p(z)
    x = PCA.sample(4, seeded(1))
    truth = on_a_grid(model, x, 8.0, 401)
    annealed, annealed_error, _ = annealed_log_likelihood(model, x, sigmoidal_temperatures(100), seeded(7), chains=200)
    sampled, error = importance_log_likelihood(log_weights(model, x, normal(20_000, 4, 2, seed=8)).detach())
    assert ((annealed - truth) / annealed_error).abs().max() < 4
    assert ((annealed - sampled) / torch.hypot(annealed_error, error)).abs().max() < 4
    assert annealed_error.max() < 0.2


def test_a_move_that_diverges_is_refused_and_no_gradients_are_left() -> None:
    model = wrong_encoder()
    with torch.no_grad():
        model.decoder[0].weight.mul_(1e100)  # the first steps leap to infinity and to NaN
    found, _, acceptance = annealed_log_likelihood(model, X, linear_temperatures(10), seeded(2), chains=5)
    assert found.isfinite().all()
    assert (acceptance < 0.1).all()
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
