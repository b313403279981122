"""The gap and the terms of the bound against models whose posterior is known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oracles import probabilistic_pca
from small_theory_context import small_context
from vaeline import config
from vaeline.theory import bounds


def test_the_mean_of_groups_is_the_elbo_at_1_and_one_iwae_at_all():
    weights = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bounds.bound_at(weights, 1), weights.mean(0))
    assert torch.allclose(bounds.bound_at(weights, 12), weights.logsumexp(0) - math.log(12))
    by_hand = torch.stack([weights[s : s + 5].logsumexp(0) - math.log(5) for s in (0, 5)]).mean(0)
    assert torch.allclose(bounds.bound_at(weights, 5), by_hand)


def test_the_gap_of_a_model_with_its_true_posterior_is_zero_and_else_the_divergence():
    pca = probabilistic_pca(pixels=64, scales=(0.2, 0.1), sigma=0.05)
    pca.bias.fill_(0.5)
    shift = 0.3
    expected = float((0.5 * shift**2 / pca.posterior()[1].exp()).sum())
    for error, truth in ((0.0, 0.0), (shift, expected)):
        vae = pca.vae(mean_error=error).float().requires_grad_(False)
        vae.shape = (1, 1, 64)
        base = small_context(options=config.Theory(images=30, importance_samples=1000, seed=1))
        images = (256 * pca.sample(60, torch.Generator().manual_seed(2))).floor().clamp(0, 255)
        test = replace(base.test, pixels=images.numpy().astype(np.uint8))
        claim = bounds.gap(replace(base, model=vae, test=test))
        numbers = claim.numbers
        assert numbers["gap"] == pytest.approx(truth, abs=4 * numbers["gap_se"] + 0.02)
        assert numbers["annealed_minus_importance"] == pytest.approx(0, abs=0.5)
        assert numbers["gaps_below_zero_by_2_se"] <= (4 if error == 0 else 0)


def test_the_second_opinion_says_where_importance_sampling_is_too_low():
    errors = torch.full((4,), 0.5)
    agreed = bounds.second_opinion(torch.tensor([0.1, -0.2, 0.3, 0.0]), errors, 1000)
    assert "more than two standard errors on 0" in agreed
    assert agreed.endswith("No image is found where 1000 samples of q(z|x) are too few.")
    hard = bounds.second_opinion(torch.tensor([0.1, -0.2, 40.0, 3.0]), errors, 1000)
    assert "more than two standard errors on 2" in hard
    assert "IS is then too low on hard images" in hard
    assert "by 40.0 ± 0.5 nats on the hardest" in hard


def test_the_terms_agree_with_the_densities():
    numbers = bounds.terms(small_context()).numbers
    assert numbers["elbo"] == pytest.approx(numbers["reconstruction"] - numbers["rate"], rel=1e-5)
    assert abs(numbers["terms_minus_densities"]) <= 4 * numbers["terms_minus_densities_se"]
    assert sum(numbers["kl_per_dimension"]) == pytest.approx(numbers["rate"], rel=1e-5)


@pytest.mark.parametrize("claim", [bounds.gap, bounds.terms])
def test_an_autoencoder_has_no_bound(claim: Any):
    assert claim(small_context(objective="autoencoder")).words == (bounds.NO_BOUND,)
