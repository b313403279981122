import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oracles import ProbabilisticPCA, probabilistic_pca, within
from vaeline.core import estimators, networks
from vaeline.core.estimators import importance_log_likelihood, log_likelihood, log_weights
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Likelihood
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.core.priors import StandardNormal


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def oracle() -> ProbabilisticPCA:
    return probabilistic_pca()


@pytest.fixture
def x(oracle: ProbabilisticPCA) -> Tensor:
    return oracle.sample(3, torch.Generator().manual_seed(1))


def test_at_the_true_posterior_every_weight_is_p_of_x(oracle: ProbabilisticPCA, x: Tensor) -> None:
    weights = log_weights(oracle.vae(), x, normal(50, 3, 2))
    assert torch.allclose(weights, oracle.log_likelihood(x).expand(50, 3), atol=1e-9)
    estimate, standard_error = importance_log_likelihood(weights)
    assert torch.allclose(estimate, oracle.log_likelihood(x), atol=1e-9)
    assert (standard_error < 1e-6).all()


def test_elbo_is_below_the_importance_weighted_bounds_and_those_rise_to_log_p(
    oracle: ProbabilisticPCA, x: Tensor
) -> None:
    model, truth, repeats = oracle.vae(mean_error=0.3, log_variance_error=0.7), oracle.log_likelihood(x), 4000
    bounds = [elbo_terms(model, x.repeat(repeats, 1, 1, 1), normal(3 * repeats, 2)).elbo.view(repeats, 3)]
    for k in (1, 5, 50):
        weights = log_weights(model, x, normal(repeats * k, 3, 2, seed=k)).view(repeats, k, 3)
        bounds.append(importance_log_likelihood(weights.transpose(0, 1).flatten(1))[0].view(repeats, 3))
    means = [bound.mean(0) for bound in bounds]
    errors = [3 * bound.std(0) / math.sqrt(repeats) for bound in bounds]
    for i in range(3):
        assert (means[i] <= means[i + 1] + errors[i] + errors[i + 1]).all()
    for mean, error in zip(means, errors, strict=True):
        assert (mean <= truth + error).all()
    assert (means[3] - means[0] > 0.1).all()  # the bounds are not all one
    assert (truth - means[3] < 0.05).all()


def test_the_mean_weight_is_an_unbiased_estimate_of_p_of_x(oracle: ProbabilisticPCA, x: Tensor) -> None:
    """Mistake 3: weights of +loss, or with the closed-form KL in place of log q - log p at the sample."""
    weights = log_weights(oracle.vae(log_variance_error=0.7), x, normal(20_000, 3, 2))
    assert within(weights.exp() / oracle.log_likelihood(x).exp(), 1.0)


def test_the_standard_error_is_the_scatter_of_estimates(oracle: ProbabilisticPCA, x: Tensor) -> None:
    weights = log_weights(oracle.vae(log_variance_error=0.5), x, normal(300 * 200, 3, 2)).view(200, 900)
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


def test_log_weights_have_the_gradients_of_finite_differences(oracle: ProbabilisticPCA, x: Tensor) -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = oracle.vae(mean_error=0.2, log_variance_error=0.4)

        def forward(self, noise: Tensor) -> Tensor:
            return log_weights(self.model, x, noise)

    weights, noise = Weights(), normal(4, 3, 2)
    names, values = zip(*weights.named_parameters(), strict=True)

    def bound(*values: Tensor) -> Tensor:
        return torch.func.functional_call(weights, dict(zip(names, values, strict=True)), (noise,)).logsumexp(0)

    assert torch.autograd.gradcheck(bound, values)


def small(likelihood: Likelihood) -> VAE:
    shape = (1, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, decoder = networks.mlp_encoder(shape, (8,), 6, "tanh"), networks.mlp_decoder(shape, (8,), 3, "tanh")
    return VAE(encoder, decoder, likelihood, StandardNormal(), shape=shape, latent_dim=3)


def images(count: int, binary: bool = False) -> Tensor:
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    return (pixels > 127).to(torch.uint8) * 255 if binary else pixels


@pytest.mark.parametrize("maker", [Bernoulli, lambda: Gaussian(None), ContinuousBernoulli, DiscretisedLogistic])
def test_log_likelihood_depends_neither_on_the_batch_nor_on_the_order(maker: Callable[[], Likelihood]) -> None:
    """Mistake 6: NLL that depends on the batch size."""
    model = small(maker())
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
    model, pixels, indices = small(ContinuousBernoulli()), images(4), [5, 6, 7, 8]
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
    model, decoded = small(DiscretisedLogistic()), []
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
