"""Gradient estimators against an exact gradient; the variance of a minibatch."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch

from small_theory_context import small_context
from vaeline.core.distributions import soft_bound
from vaeline.core.likelihoods import LOG_SIGMA_BOUND
from vaeline.core.metrics import Measured
from vaeline.core.objectives import estimate
from vaeline.theory import gradients


def test_the_small_models_exact_gradient_is_that_of_the_closed_form():
    model, x = gradients.linear_gaussian()
    posterior, (weight, bias) = model.encode(x), model.decoder[0].parameters()
    sigma2 = torch.exp(2 * soft_bound(model.likelihood.log_sigma, LOG_SIGMA_BOUND))
    at_mean = (x.flatten(1) - posterior.mean @ weight.T - bias).square().sum(1)
    spread = (torch.exp(posterior.log_variance) @ weight.square().T).sum(1)
    log_p = -(at_mean + spread) / (2 * sigma2) - x[0].numel() / 2 * torch.log(2 * math.pi * sigma2)
    elbo = (log_p - posterior.kl_to_standard_normal().sum(1)).mean()
    closed = torch.cat([part.flatten() for part in torch.autograd.grad(elbo, list(model.parameters()))])
    assert torch.allclose(gradients.exact_gradient(model, x, "elbo"), closed, rtol=1e-6, atol=1e-8)


def test_estimators_agree_with_the_exact_gradient_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch):
    claim = gradients.estimators(small_context())
    assert claim.numbers["largest_z"] < 4
    chance = claim.numbers["components"] * 2 * NormalDist().cdf(-4)
    assert claim.numbers["chance_beyond_4"] == pytest.approx(chance)
    assert "these z are not independent" in claim.words[0]
    score, with_baseline = (claim.numbers["estimators"][f"elbo/score-function{end}"] for end in ("", "-baseline"))
    assert (
        score["variance_ratio"] > max(10, 2 * with_baseline["variance_ratio"]) and with_baseline["variance_ratio"] > 1
    )
    assert score["trained_variance_ratio"] > 10

    def biased(model: Any, x: Any, noise: Any, name: Any, *, bound: Any) -> Any:
        return estimate(model, x, noise, "sticking-the-landing" if bound == "iwae" else name, bound=bound)

    monkeypatch.setattr(gradients, "estimate", biased)
    assert gradients.estimators(small_context()).numbers["largest_z"] > 4


def test_pairs_measure_the_variance():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 2.0])
    found = gradients.variance(lambda: [3 + scale * torch.randn(2, generator=generator)], pairs=4000)
    assert found.value == pytest.approx(5, abs=4 * found.se)
    assert found.se < 0.2


def test_the_slope_is_that_of_a_power_law():
    points = {size: Measured(7 / size**0.8, 0.1 / size) for size in (1, 4, 16)}
    assert gradients.fitted_slope(points).value == pytest.approx(-0.8)


@pytest.mark.parametrize("objective", ["elbo", "autoencoder"])
def test_the_gradients_variance_falls_with_the_batch(objective: str):
    claim = gradients.batch_size(small_context(objective=objective))
    assert claim.numbers["slope"] == pytest.approx(-1, abs=4 * claim.numbers["slope_se"])
    assert ("with the same images and another z" in claim.words[0]) == (objective == "elbo")


def test_a_repeated_batch_differs_in_z_alone():
    here = small_context(objective="autoencoder")  # which has no z to differ in
    draw = gradients._batches(here, 4, here.generator("x"), repeated=True)
    first, again, other = draw(), draw(), draw()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_of_a_model_that_has_died_no_ratio_of_variances_and_no_slope_is_claimed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gradients, "variance", lambda *_: Measured(0.0, 0.0))
    monkeypatch.setattr(gradients, "REPEATS", 8)
    context = small_context()
    ways = gradients.estimators(context).numbers["estimators"]
    assert all(way["trained_variance"] == 0 and "trained_variance_ratio" not in way for way in ways.values())
    claim = gradients.batch_size(context)
    assert (claim.numbers, claim.pictures) == ({}, ())
    assert claim.words[0].startswith("Does not apply: ")
