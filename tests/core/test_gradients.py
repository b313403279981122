"""Every estimator of a bound's gradient against the exact gradient, by quadrature, of a small linear-Gaussian model."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import probabilistic_pca
from vaeline.core.estimators import log_weights
from vaeline.core.gradients import Bound, Estimator, estimate
from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import importance_weighted_bound
from vaeline.core.priors import VampPrior

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
ELBO_ESTIMATORS = ESTIMATORS[:4]
PIXELS = 4


def linear_model(scales: tuple[float, ...], pixels: int = PIXELS) -> tuple[VAE, Tensor]:
    """A model away from every optimum, with a learned sigma, and three images."""
    pca = probabilistic_pca(pixels=pixels, scales=scales, sigma=1.0)
    model = pca.vae(mean_error=0.3, log_variance_error=-0.4)
    model.likelihood = Gaussian(None).double()
    with torch.no_grad():
        model.likelihood.log_sigma.fill_(-0.2)
        model.decoder[0].bias += 0.5
    return model, pca.sample(3, torch.Generator().manual_seed(1))


def exact_bound(model: VAE, x: Tensor, samples: int, bound: Bound, *, nodes: int, beta: float = 1.0) -> Tensor:
    """The bound's mean over the images, its expectation over the noise by Gauss-Hermite quadrature: a scalar."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    axes = samples * model.latent_dim
    grid = torch.tensor(list(itertools.product(places, repeat=axes)))  # [N, K Z]
    weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=axes))).prod(1)  # [N]
    noise = grid.view(-1, samples, model.latent_dim).movedim(0, 1)  # [K, N, Z]
    total = torch.zeros((), dtype=torch.float64)
    for image in x.split(1):
        repeated = image.expand(len(grid), -1, -1, -1)
        posterior = model.encode(repeated)
        z = posterior.rsample(noise)
        log_w = log_weights(model, repeated, noise)
        log_w = log_w + (beta - 1) * (model.prior.log_prob(z) - posterior.log_prob(z))
        value = log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(samples)
        total = total + (weight * value).sum() / len(x)
    return total


def gradient(model: VAE, value: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


def estimates(
    model: VAE, x: Tensor, samples: int, estimator: Estimator, bound: Bound, *, beta: float = 1.0, count: int = 200
) -> dict[str, Tensor]:
    """`count` independent estimates of the gradient, each the mean over 200 draws for every image: [count, ...]."""
    generator = torch.Generator().manual_seed(2)
    repeated = x.repeat(200, 1, 1, 1)
    rows = []
    for _ in range(count):
        noise = torch.randn(samples, len(repeated), model.latent_dim, generator=generator, dtype=torch.float64)
        surrogate = estimate(model, repeated, noise, estimator, bound=bound, beta=beta).surrogate
        rows.append(gradient(model, surrogate.mean()))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def largest_z(found: dict[str, Tensor], exact: dict[str, Tensor], part: str = "") -> float:
    """The largest |mean - exact| in standard errors over every number of every parameter whose name has `part`."""
    scores = [
        (values.mean(0) - exact[name]).abs() / (values.std(0) / math.sqrt(len(values)) + 1e-12)
        for name, values in found.items()
        if part in name
    ]
    return max(float(score.max()) for score in scores)


def spread(found: dict[str, Tensor], part: str = "encoder") -> float:
    """The total variance of one estimate, over the parameters whose name has `part`."""
    return sum(float(values.var(0).sum()) for name, values in found.items() if part in name)


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (1, 0.5), (3, 1.0)])
@pytest.mark.parametrize("estimator", ELBO_ESTIMATORS)
def test_the_elbos_gradient_is_unbiased_for_every_parameter(estimator: Estimator, samples: int, beta: float) -> None:
    if estimator == "score-function-baseline":
        samples += 1
    model, x = linear_model((1.5, 0.8))
    exact = gradient(model, exact_bound(model, x, 1, "elbo", nodes=4, beta=beta))  # quadratic in z: 4 nodes are exact
    z = largest_z(estimates(model, x, samples, estimator, "elbo", beta=beta), exact)
    print(f"{estimator}, {samples} samples, beta {beta}: largest |z| {z:.2f}")  # noqa: T201
    assert z < 4


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "sticking-the-landing"])
def test_the_importance_weighted_bounds_gradient_is_unbiased_for_every_parameter(estimator: Estimator) -> None:
    """Mistake 3: weights of the wrong sign, not detached, or with an analytic KL bias it."""
    model, x = linear_model((1.2,))
    exact = gradient(model, exact_bound(model, x, 2, "iwae", nodes=64))
    z = largest_z(estimates(model, x, 2, estimator, "iwae"), exact)
    print(f"{estimator}, IWAE-2: largest |z| {z:.2f}")  # noqa: T201
    assert z < 4


@pytest.mark.parametrize("estimator", ["sticking-the-landing", "doubly-reparameterised"])
def test_a_prior_made_of_the_encoder_keeps_its_own_gradient(estimator: Estimator) -> None:
    model, x = linear_model((1.2,))
    torch.manual_seed(0)
    prior = VampPrior(3, model.shape).double()
    model = VAE(model.encoder, model.decoder, model.likelihood, prior, shape=model.shape, latent_dim=model.latent_dim)
    bound: Bound = "iwae" if estimator == "doubly-reparameterised" else "elbo"
    samples = 2 if bound == "iwae" else 1
    exact = gradient(model, exact_bound(model, x, samples, bound, nodes=64))
    assert largest_z(estimates(model, x, samples, estimator, bound), exact) < 4


def test_sticking_the_landing_is_biased_for_the_encoder_alone_under_iwae() -> None:
    model, x = linear_model((1.2,))
    exact = gradient(model, exact_bound(model, x, 2, "iwae", nodes=64))
    found = estimates(model, x, 2, "sticking-the-landing", "iwae")
    assert largest_z(found, exact, "encoder") > 10
    assert max(largest_z(found, exact, "decoder"), largest_z(found, exact, "likelihood")) < 4


def test_quadrature_has_converged() -> None:
    model, x = linear_model((1.2,))
    fine, coarse = (gradient(model, exact_bound(model, x, 2, "iwae", nodes=nodes)) for nodes in (64, 48))
    assert all(torch.allclose(fine[name], coarse[name], atol=1e-6) for name in fine)


def test_the_score_function_varies_far_more_than_the_path() -> None:
    model, x = linear_model((1.5, 0.8), pixels=16)
    single = {name: spread(estimates(model, x, 1, name, "elbo")) for name in ("pathwise", "score-function")}
    several = {name: spread(estimates(model, x, 4, name, "elbo")) for name in ELBO_ESTIMATORS}
    ratio = single["score-function"] / single["pathwise"]
    print(f"variance of the score function over the pathwise estimator, 1 sample: {ratio:.1f}")  # noqa: T201
    print({name: round(value / several["pathwise"], 2) for name, value in several.items()})  # noqa: T201
    assert ratio > 10
    assert several["score-function"] > 2 * several["score-function-baseline"] > 2 * several["pathwise"]


def test_sticking_the_landing_has_no_variance_at_the_true_posterior() -> None:
    pca = probabilistic_pca()
    model, x = pca.vae(), pca.sample(3, torch.Generator().manual_seed(1))
    noise = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for estimator, silent in [("sticking-the-landing", True), ("pathwise", False), ("score-function", False)]:
        found = gradient(model, estimate(model, x, noise, estimator).surrogate.mean())
        largest = max(float(value.abs().max()) for name, value in found.items() if "encoder" in name)
        assert (largest < 1e-12) == silent


def test_more_samples_sharpen_the_doubly_reparameterised_gradient_and_blur_the_pathwise_one() -> None:
    pca = probabilistic_pca(pixels=PIXELS, sigma=1.0)
    model = pca.vae(mean_error=0.3, log_variance_error=0.4)  # wider than the posterior: weights of finite variance
    x = pca.sample(3, torch.Generator().manual_seed(1))

    def signal_to_noise(samples: int, estimator: Estimator) -> tuple[float, float]:
        found = estimates(model, x, samples, estimator, "iwae", count=50)
        signal = sum(float(values.mean(0).square().sum()) for name, values in found.items() if "encoder" in name)
        return math.sqrt(signal / spread(found)), spread(found)

    (few, few_spread), (many, many_spread) = (signal_to_noise(k, "doubly-reparameterised") for k in (4, 64))
    print(f"signal to noise, doubly reparameterised: {few:.1f} with 4 samples, {many:.1f} with 64")  # noqa: T201
    assert many / few == pytest.approx(4, rel=0.3)  # as sqrt(k): Tucker et al. 2018, section 4
    assert many_spread < few_spread / 1000
    (few, _), (many, _) = (signal_to_noise(k, "pathwise") for k in (4, 64))
    assert many / few == pytest.approx(1 / 4, rel=0.3)  # as 1 / sqrt(k): Rainforth et al. 2018, arXiv:1802.04537


@pytest.mark.parametrize("bound", get_args(Bound))
def test_what_is_reported_is_the_bound_whatever_the_estimator(bound: Bound) -> None:
    """Mistake 5: the surrogate reported as the bound, optimistic by up to log k."""
    model, x = linear_model((1.5, 0.8))
    noise = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    log_w = log_weights(model, x, noise).detach()
    truth = log_w.mean(0) if bound == "elbo" else log_w.exp().mean(0).log()
    for estimator in ESTIMATORS if bound == "iwae" else ELBO_ESTIMATORS:
        found = estimate(model, x, noise, estimator, bound=bound)
        assert not found.bound.requires_grad
        if (estimator, bound) != ("pathwise", "elbo"):  # whose KL is in closed form
            assert torch.allclose(found.bound, truth, atol=1e-10)
            assert torch.allclose(found.terms.elbo, log_w.mean(0), atol=1e-10)
    if bound == "iwae":  # the surrogate sum_k v_k log w_k is no bound: it is the larger by up to log k
        assert (found.surrogate > found.bound + 0.1).any()


def test_the_reported_elbo_does_not_change_with_beta() -> None:
    """Mistake 12: a reported bound that includes beta."""
    model, x = linear_model((1.5, 0.8))
    noise = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for estimator in ELBO_ESTIMATORS:
        one, four = (estimate(model, x, noise, estimator, beta=beta) for beta in (1.0, 4.0))
        assert torch.equal(one.bound, four.bound)
        assert not torch.allclose(one.surrogate, four.surrogate)


def test_with_one_sample_iwae_is_the_elbo_and_double_reparameterisation_sticks_the_landing() -> None:
    model, x = linear_model((1.5, 0.8))
    noise = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    doubly = estimate(model, x, noise, "doubly-reparameterised", bound="iwae")
    sticking = estimate(model, x, noise, "sticking-the-landing")
    assert torch.allclose(doubly.bound, sticking.bound)
    found, wanted = gradient(model, doubly.surrogate.sum()), gradient(model, sticking.surrogate.sum())
    assert all(torch.allclose(found[name], wanted[name]) for name in wanted)


def test_the_bound_never_falls_as_k_grows_and_stays_below_log_p() -> None:
    pca = probabilistic_pca(pixels=PIXELS, scales=(1.2,))
    model, x = pca.vae(mean_error=0.5, log_variance_error=0.8), pca.sample(200, torch.Generator().manual_seed(1))
    truth = pca.log_likelihood(x).mean()
    few = [exact_bound(model, x[:5], k, "iwae", nodes=24) for k in (1, 2, 3)]
    assert few[0] + 0.01 < few[1] < few[2] - 0.01 < pca.log_likelihood(x[:5]).mean()
    generator, below, error = torch.Generator().manual_seed(6), -math.inf, 0.0
    for k in (1, 5, 50, 500, 5000):
        noise = torch.randn(k, len(x), 1, generator=generator, dtype=torch.float64)
        values = importance_weighted_bound(log_weights(model, x, noise).detach()) - pca.log_likelihood(x)
        mean, previous, error = float(values.mean()), error, float(values.std()) / math.sqrt(len(x))
        assert mean >= below - 3 * math.hypot(previous, error)
        assert mean <= 3 * error
        below = mean
    assert mean == pytest.approx(0, abs=3 * error)
    assert float(truth) < 0


@pytest.mark.parametrize(
    ("estimator", "bound", "samples", "beta"),
    [
        ("doubly-reparameterised", "elbo", 2, 1.0),
        ("score-function-baseline", "elbo", 1, 1.0),
        ("score-function-baseline", "iwae", 1, 1.0),
        ("pathwise", "iwae", 2, 0.5),
    ],
)
def test_meaningless_combinations_are_refused(estimator: Estimator, bound: Bound, samples: int, beta: float) -> None:
    model, x = linear_model((1.5, 0.8))
    with pytest.raises(ValueError, match=r"elbo|at least 2|beta"):
        estimate(model, x, torch.zeros(samples, 3, 2, dtype=torch.float64), estimator, bound=bound, beta=beta)
