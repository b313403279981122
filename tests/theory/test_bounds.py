"""The gap and the terms of the bound against models whose posterior is known; the KL against closed forms."""

import math
from dataclasses import replace

import pytest
import torch

from oracles import kl_by_quadrature
from small_theory_context import hurry, pca_context, small_context
from vaeline import config
from vaeline.theory import bounds


def test_the_mean_of_groups_is_the_elbo_at_1_and_one_iwae_at_all():
    weights = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bounds.bound_at(weights, 1), weights.mean(0))
    assert torch.allclose(bounds.bound_at(weights, 12), weights.logsumexp(0) - math.log(12))
    by_hand = torch.stack([weights[s : s + 5].logsumexp(0) - math.log(5) for s in (0, 5)]).mean(0)
    assert torch.allclose(bounds.bound_at(weights, 5), by_hand)


def test_the_gap_of_a_model_with_its_true_posterior_is_zero_and_else_the_divergence():
    for error in (0.0, 0.3):
        pca, here = pca_context(config.Theory(images=30, importance_samples=1000, seed=1), mean_error=error)
        numbers, truth = bounds.gap(here).numbers, float((0.5 * error**2 / pca.posterior()[1].exp()).sum())
        assert numbers["gap"] == pytest.approx(truth, abs=4 * numbers["gap_se"] + 0.02)
        assert numbers["annealed_minus_importance"] == pytest.approx(0, abs=0.5)
        few, many = (numbers["missed_by_prior"][k] for k in ("100", "1000"))  # hardly any z of the prior explains one
        assert few["nats"] > many["nats"] > 0
        assert numbers["amortisation"] == pytest.approx(truth, abs=4 * numbers["amortisation_se"] + 0.05)
        assert numbers["approximation"] == pytest.approx(
            0, abs=4 * numbers["approximation_se"] + 0.05
        )  # it is diagonal
        assert numbers["gaps_below_zero_by_2_se"] <= (4 if error == 0 else 0)


def test_the_terms_agree_with_the_densities():
    numbers = bounds.terms(small_context()).numbers
    assert numbers["elbo"] == pytest.approx(numbers["reconstruction"] - numbers["rate"], rel=1e-5)
    assert abs(numbers["terms_minus_densities"]) <= 4 * numbers["terms_minus_densities_se"]
    assert sum(numbers["kl_per_dimension"]) == pytest.approx(numbers["rate"], rel=1e-5)


def test_numbers_of_few_images_and_of_a_training_path_are_said_to_be_that(monkeypatch: pytest.MonkeyPatch):
    hurry(monkeypatch)
    here = small_context()
    history = [replace(here.history[0], validation_kl=kl, beta=1e-6) for kl in (15.0, 32.1)]
    terms, gap = bounds.terms(replace(here, history=history)), bounds.gap(here)
    for claim in (terms, gap):
        assert claim.words[0].startswith("12 random ones of 60 test images (not the whole split")
    assert "15.0 nats after the first epoch, 32.1 after the last" in terms.words[1]
    assert "maximises reconstruction - β KL (β = 1e-06)" in terms.words[1]
    assert "is not a rate-distortion curve" in terms.words[1]
    assert "on the first 12 of them" in gap.words[2]
    everything = replace(here, options=config.Theory(images=60, importance_samples=2, seed=1))
    assert bounds.terms(everything).words[0].startswith("All 60 test images")


def test_kl_on_the_grid_is_the_closed_form_and_quadrature():
    a, b = bounds.gaussian(1.0, 0.5), bounds.gaussian(0.0, 1.0)
    assert bounds.kl(a, b) == pytest.approx(bounds.kl_of_gaussians(1.0, 0.5, 0.0, 1.0), abs=1e-6)
    assert bounds.kl(a, b) == pytest.approx(kl_by_quadrature(1.0, 2 * math.log(0.5)), abs=1e-6)


def test_each_fit_is_the_best_one_by_its_own_divergence():
    numbers, p = bounds.asymmetry().numbers, bounds.mixture()
    assert numbers["smallest_of_random_pairs"] >= 0
    assert numbers["covering"]["kl_p_q"] < numbers["mode_seeking"]["kl_p_q"]
    assert numbers["mode_seeking"]["kl_q_p"] < numbers["covering"]["kl_q_p"]
    for step in (-0.02, 0.02):
        for name, key in (("covering", "kl_p_q"), ("mode_seeking", "kl_q_p")):
            mean, sd = numbers[name]["mean"], numbers[name]["sd"]
            for q in (bounds.gaussian(mean + step, sd), bounds.gaussian(mean, sd + step)):
                worse = bounds.kl(p, q) if key == "kl_p_q" else bounds.kl(q, p)
                assert worse > numbers[name][key]
