"""The bounds, and every estimator of their gradients against quadrature on a small linear-Gaussian model."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import normal, probabilistic_pca, seeded
from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import (
    Bound,
    Estimator,
    Terms,
    elbo_terms,
    estimate,
    importance_weighted_bound,
    log_weights,
    surrogate,
)
from vaeline.core.priors import VampPrior

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
ELBO_ESTIMATORS = ESTIMATORS[:4]
PIXELS = 4


def linear_model(scales: tuple[float, ...]) -> tuple[VAE, Tensor]:
    """A model away from every optimum, with a learned sigma, and three images."""
    pca = probabilistic_pca(pixels=PIXELS, scales=scales, sigma=1.0)
    model = pca.vae(mean_error=0.3, log_variance_error=-0.4)
    model.likelihood = Gaussian(None).double()
    with torch.no_grad():
        model.likelihood.log_sigma.fill_(-0.2)
        model.decoder[0].bias += 0.5
    return model, pca.sample(3, seeded(1))


def exact_bound(model: VAE, x: Tensor, samples: int, bound: Bound, *, nodes: int, beta: float = 1.0) -> Tensor:
    """The bound's mean over the images, its expectation over the noise by Gauss-Hermite quadrature: a scalar."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    axes = samples * model.latent_dim
    grid = torch.tensor(list(itertools.product(places, repeat=axes)))  # [N, K Z]
    weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=axes))).prod(1)  # [N]
    noise = grid.view(-1, samples, model.latent_dim).movedim(0, 1)  # [K, N, Z]
    repeated, noise = x.repeat_interleave(len(grid), 0), noise.repeat(1, len(x), 1)
    posterior = model.encode(repeated)
    z = posterior.rsample(noise)
    log_w = log_weights(model, repeated, noise)
    log_w = log_w + (beta - 1) * (model.prior.log_prob(z) - posterior.log_prob(z))
    value = log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(samples)
    return (value.view(len(x), -1) @ weight).mean()


def gradient(model: VAE, value: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


def estimates(
    model: VAE, x: Tensor, samples: int, estimator: Estimator, bound: Bound, *, beta: float = 1.0, count: int = 200
) -> dict[str, Tensor]:
    """`count` independent estimates of the gradient, each the mean over 200 draws for every image: [count, ...]."""
    generator = seeded(2)
    repeated = x.repeat(200, 1, 1, 1)
    rows = []
    for _ in range(count):
        noise = torch.randn(samples, len(repeated), model.latent_dim, generator=generator, dtype=torch.float64)
        found = estimate(model, repeated, noise, estimator, bound=bound, beta=beta)
        rows.append(gradient(model, found.surrogate.mean()))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def largest_z(found: dict[str, Tensor], exact: dict[str, Tensor], part: str = "") -> float:
    """The largest |mean - exact| in standard errors over every number of every parameter whose name has `part`."""
    scores = [
        (values.mean(0) - exact[name]).abs() / (values.std(0) / math.sqrt(len(values)) + 1e-12)
        for name, values in found.items()
        if part in name
    ]
    return max(float(score.max()) for score in scores)


def spread(found: dict[str, Tensor]) -> float:
    """The total variance of one estimate, over the encoder's parameters."""
    return sum(float(values.var(0).sum()) for name, values in found.items() if "encoder" in name)


@pytest.mark.parametrize(("samples", "beta"), [(1, 0.5), (3, 1.0)])
@pytest.mark.parametrize("estimator", ELBO_ESTIMATORS)
def test_the_elbos_gradient_is_unbiased_for_every_parameter(estimator: Estimator, samples: int, beta: float) -> None:
    if estimator == "score-function-baseline":
        samples += 1
    model, x = linear_model((1.5, 0.8))
    exact = gradient(model, exact_bound(model, x, 1, "elbo", nodes=4, beta=beta))  # quadratic in z: 4 nodes are exact
    assert largest_z(estimates(model, x, samples, estimator, "elbo", beta=beta), exact) < 4


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_importance_weighted_bounds_gradient_is_unbiased_but_for_sticking_the_landing(estimator: Estimator) -> None:
    """Mistake 3: weights of the wrong sign, not detached, or with an analytic KL bias it."""
    model, x = linear_model((1.2,))
    exact, coarse = (gradient(model, exact_bound(model, x, 2, "iwae", nodes=nodes)) for nodes in (64, 48))
    assert all(torch.allclose(exact[name], coarse[name], atol=1e-6) for name in exact), "quadrature has converged"
    found = estimates(model, x, 2, estimator, "iwae")
    assert max(largest_z(found, exact, "decoder"), largest_z(found, exact, "likelihood")) < 4
    encoder = largest_z(found, exact, "encoder")
    assert encoder > 10 if estimator == "sticking-the-landing" else encoder < 4


@pytest.mark.parametrize(
    ("estimator", "bound", "samples"), [("sticking-the-landing", "elbo", 1), ("doubly-reparameterised", "iwae", 2)]
)
def test_a_prior_made_of_the_encoder_keeps_its_own_gradient(estimator: Estimator, bound: Bound, samples: int) -> None:
    model, x = linear_model((1.2,))
    torch.manual_seed(0)
    prior = VampPrior(3, model.shape).double()
    model = VAE(model.encoder, model.decoder, model.likelihood, prior, shape=model.shape, latent_dim=model.latent_dim)
    exact = gradient(model, exact_bound(model, x, samples, bound, nodes=64))
    assert largest_z(estimates(model, x, samples, estimator, bound), exact) < 4


def test_sticking_the_landing_has_no_variance_at_the_true_posterior() -> None:
    pca = probabilistic_pca()
    model, x = pca.vae(), pca.sample(3, seeded(1))
    for estimator, silent in [("sticking-the-landing", True), ("pathwise", False), ("score-function", False)]:
        found = gradient(model, estimate(model, x, normal(1, 3, 2, seed=3), estimator).surrogate.mean())
        largest = max(float(value.abs().max()) for name, value in found.items() if "encoder" in name)
        assert (largest < 1e-12) == silent


def test_more_samples_sharpen_the_doubly_reparameterised_gradient() -> None:
    pca = probabilistic_pca(pixels=PIXELS, sigma=1.0)
    model = pca.vae(mean_error=0.3, log_variance_error=0.4)  # wider than the posterior: weights of finite variance
    x = pca.sample(3, seeded(1))

    def signal_to_noise(samples: int) -> tuple[float, float]:
        found = estimates(model, x, samples, "doubly-reparameterised", "iwae", count=50)
        signal = sum(float(values.mean(0).square().sum()) for name, values in found.items() if "encoder" in name)
        return math.sqrt(signal / spread(found)), spread(found)

    (few, few_spread), (many, many_spread) = (signal_to_noise(k) for k in (4, 64))
    assert many / few == pytest.approx(4, rel=0.3)  # as sqrt(k): Tucker et al. 2018, section 4
    assert many_spread < few_spread / 1000


@pytest.mark.parametrize("bound", get_args(Bound))
def test_what_is_reported_is_the_bound_whatever_the_estimator_and_beta(bound: Bound) -> None:
    """Mistake 5: the surrogate reported as the bound, optimistic by up to log k. Mistake 12: beta in the report."""
    model, x = linear_model((1.5, 0.8))
    noise = normal(5, 3, 2, seed=4)
    log_w = log_weights(model, x, noise).detach()
    truth = log_w.mean(0) if bound == "elbo" else log_w.exp().mean(0).log()
    for estimator in ESTIMATORS if bound == "iwae" else ELBO_ESTIMATORS:
        found = estimate(model, x, noise, estimator, bound=bound)
        assert not found.bound.requires_grad
        if (estimator, bound) != ("pathwise", "elbo"):  # whose KL is in closed form
            assert torch.allclose(found.bound, truth, atol=1e-10)
            assert torch.allclose(found.terms.elbo, log_w.mean(0), atol=1e-10)
        if bound == "elbo":
            weighted = estimate(model, x, noise, estimator, beta=4.0)
            assert torch.equal(found.bound, weighted.bound)
            assert torch.equal(found.terms.kl, weighted.terms.kl)
            assert not torch.allclose(found.surrogate, weighted.surrogate)
    if bound == "iwae":  # the surrogate sum_k v_k log w_k is no bound: it is the larger by up to log k
        assert (found.surrogate > found.bound + 0.1).any()


def test_the_bound_never_falls_as_k_grows_and_stays_below_log_p() -> None:
    pca = probabilistic_pca(pixels=PIXELS, scales=(1.2,))
    model, x = pca.vae(mean_error=0.5, log_variance_error=0.8), pca.sample(5, seeded(1))
    few = [exact_bound(model, x, k, "iwae", nodes=24) for k in (1, 2, 3)]
    assert few[0] + 0.01 < few[1] < few[2] - 0.01 < pca.log_likelihood(x).mean()
    log_w = log_weights(model, x, normal(20_000, 5, 1, seed=6)).detach()
    assert torch.allclose(importance_weighted_bound(log_w), pca.log_likelihood(x), atol=0.05)


@pytest.mark.parametrize(
    ("estimator", "bound", "samples", "beta"),
    [
        ("doubly-reparameterised", "elbo", 2, 1.0),
        ("score-function-baseline", "iwae", 1, 1.0),
        ("pathwise", "iwae", 2, 0.5),
    ],
)
def test_meaningless_combinations_are_refused(estimator: Estimator, bound: Bound, samples: int, beta: float) -> None:
    model, x = linear_model((1.5, 0.8))
    with pytest.raises(ValueError, match=r"elbo|at least 2|beta"):
        estimate(model, x, torch.zeros(samples, 3, 2, dtype=torch.float64), estimator, bound=bound, beta=beta)


def test_the_autoencoder_has_no_kl_and_no_noise() -> None:
    """Mistake 9: the reconstruction at the mean less the KL, called an ELBO, can exceed log p(x)."""
    oracle = probabilistic_pca()
    x, model = oracle.sample(3, seeded(1)), oracle.vae()
    terms = elbo_terms(model, x, None)
    assert torch.equal(terms.kl_per_dimension, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(terms.reconstruction, model.likelihood.log_prob(x, model.decode(model.encode(x).mean)))


def test_surrogate_weighs_the_kl_by_beta_and_the_reported_bound_does_not() -> None:
    """Mistakes 1 and 12: a mean over dimensions; a reported bound that includes regularisers or the annealed beta."""
    terms = Terms(torch.tensor([-10.0, -20.0]), torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    assert terms.kl.tolist() == [3.0, 3.5]
    assert torch.equal(surrogate(terms, 1.0, 0.0), terms.elbo)
    for beta, free_bits in [(0.0, 0.0), (4.0, 0.0), (torch.tensor(0.25), 0.0), (1.0, 5.0)]:
        value = surrogate(terms, beta, free_bits)
        assert value.tolist() != terms.elbo.tolist() == [-13.0, -23.5]
        if not free_bits:
            assert torch.allclose(value, terms.reconstruction - beta * terms.kl)


def test_free_bits_floor_each_dimension_s_mean_kl_over_the_batch_and_stop_its_gradient() -> None:
    """Mistake 13: an option that nothing reads."""
    kl = torch.tensor([[0.1, 2.0], [0.3, 0.0]], dtype=torch.float64, requires_grad=True)  # means 0.2 and 1.0
    terms = Terms(torch.tensor([-7.0, -9.0], dtype=torch.float64), kl)
    objective = surrogate(terms, 2.0, 0.5).mean()
    assert float(objective.detach()) == pytest.approx(-8 - 2 * (0.5 + 1.0))
    low, none = (float(surrogate(terms, 2.0, free_bits).mean().detach()) for free_bits in (0.1, 0.0))
    assert low == pytest.approx(none)
    objective.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, -1.0], [0.0, -1.0]]
