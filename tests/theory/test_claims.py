"""The page's claims against what is known, and their words where they do not apply."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oracles import kl_by_quadrature, probabilistic_pca
from small_theory_context import TINY, hurry, subject
from vaeline import config
from vaeline.core.distributions import soft_bound
from vaeline.core.gradients import estimate
from vaeline.core.likelihoods import LOG_SIGMA_BOUND
from vaeline.theory import bounds, codes, divergence, first_stage, gradients, scales
from vaeline.theory.context import Measured


def test_the_mean_of_groups_is_the_elbo_at_1_and_one_iwae_at_all():
    weights = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bounds.bound_at(weights, 1), weights.mean(0))
    assert torch.allclose(bounds.bound_at(weights, 12), weights.logsumexp(0) - math.log(12))
    by_hand = torch.stack([weights[s : s + 5].logsumexp(0) - math.log(5) for s in (0, 5)]).mean(0)
    assert torch.allclose(bounds.bound_at(weights, 5), by_hand)


def test_rungs_end_with_all_samples():
    assert bounds.rungs(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert bounds.rungs(7) == [1, 2, 5, 7]


def test_the_gap_of_a_model_with_its_true_posterior_is_zero_and_else_the_divergence():
    pca = probabilistic_pca(pixels=64, scales=(0.2, 0.1), sigma=0.05)
    pca.bias.fill_(0.5)
    shift = 0.3
    expected = float((0.5 * shift**2 / pca.posterior()[1].exp()).sum())
    for error, truth in ((0.0, 0.0), (shift, expected)):
        vae = pca.vae(mean_error=error).float().requires_grad_(False)
        vae.shape = (1, 1, 64)
        base = subject(options=config.Theory(images=30, importance_samples=1000, seed=1))
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
    numbers = bounds.terms(subject()).numbers
    assert numbers["elbo"] == pytest.approx(numbers["reconstruction"] - numbers["rate"], rel=1e-5)
    assert abs(numbers["terms_minus_densities"]) <= 4 * numbers["terms_minus_densities_se"]
    assert sum(numbers["kl_per_dimension"]) == pytest.approx(numbers["rate"], rel=1e-5)


def test_the_small_models_exact_gradient_is_that_of_the_closed_form():
    model, x = gradients.linear_gaussian()
    posterior, (weight, bias) = model.encode(x), model.decoder[0].parameters()
    sigma2 = torch.exp(2 * soft_bound(model.likelihood.log_sigma, LOG_SIGMA_BOUND))
    at_mean = (x.flatten(1) - posterior.mean @ weight.T - bias).square().sum(1)
    spread = (torch.exp(posterior.log_variance) @ weight.square().T).sum(1)
    log_p = -(at_mean + spread) / (2 * sigma2) - x[0].numel() / 2 * torch.log(2 * math.pi * sigma2)
    elbo = (log_p - posterior.kl_to_standard_normal().sum(1)).mean()
    closed = torch.autograd.grad(elbo, list(model.parameters()))
    for found, known in zip(gradients.exact_gradient(model, x, "elbo"), closed, strict=True):
        assert torch.allclose(found, known, rtol=1e-6, atol=1e-8)


def test_estimators_agree_with_the_exact_gradient_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch):
    claim = gradients.estimators(subject())
    assert claim.numbers["largest_z"] < 4
    assert claim.numbers["estimators"]["elbo/score-function"]["variance_ratio"] > 10
    assert claim.numbers["estimators"]["elbo/score-function"]["trained_variance_ratio"] > 10

    def biased(model: Any, x: Any, noise: Any, name: Any, *, bound: Any) -> Any:
        return estimate(model, x, noise, "sticking-the-landing" if bound == "iwae" else name, bound=bound)

    monkeypatch.setattr(gradients, "estimate", biased)
    assert gradients.estimators(subject()).numbers["largest_z"] > 4


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
    numbers = gradients.batch_size(subject(objective=objective)).numbers
    assert numbers["slope"] == pytest.approx(-1, abs=4 * numbers["slope_se"])


def test_kl_on_the_grid_is_the_closed_form_and_quadrature():
    a, b = divergence.gaussian(1.0, 0.5), divergence.gaussian(0.0, 1.0)
    assert divergence.kl(a, b) == pytest.approx(divergence.kl_of_gaussians(1.0, 0.5, 0.0, 1.0), abs=1e-6)
    assert divergence.kl(a, b) == pytest.approx(kl_by_quadrature(1.0, 2 * math.log(0.5)), abs=1e-6)


def test_each_fit_is_the_best_one_by_its_own_divergence():
    numbers, p = divergence.asymmetry().numbers, divergence.mixture()
    assert numbers["smallest_of_random_pairs"] >= 0
    assert numbers["covering"]["kl_p_q"] < numbers["mode_seeking"]["kl_p_q"]
    assert numbers["mode_seeking"]["kl_q_p"] < numbers["covering"]["kl_q_p"]
    for step in (-0.02, 0.02):
        for name, key in (("covering", "kl_p_q"), ("mode_seeking", "kl_q_p")):
            mean, sd = numbers[name]["mean"], numbers[name]["sd"]
            for q in (divergence.gaussian(mean + step, sd), divergence.gaussian(mean, sd + step)):
                worse = divergence.kl(p, q) if key == "kl_p_q" else divergence.kl(q, p)
                assert worse > numbers[name][key]


def test_only_sigma_itself_can_be_no_sigma():
    raw = torch.tensor([-300.0, -1.0, 0.0, 300.0])
    for head, wrong in (("log σ²", 0), ("softplus", 1), ("σ", 2)):
        log_variance, invalid = scales.read_head(raw, head)  # type: ignore[arg-type]
        assert int(invalid.sum()) == wrong, head
        assert torch.isfinite(log_variance).all()
        assert log_variance[2] == pytest.approx(0, abs=1e-6)


def test_the_best_sigma_is_the_root_of_the_mean_squared_error():
    numbers = scales.squared_error(subject()).numbers
    assert numbers["largest_relative_difference"] < 1e-4
    mse = numbers["root_mean_squared_error_train"] ** 2

    def cost(sigma: float) -> float:
        return mse / (2 * sigma**2) + math.log(sigma)

    best = numbers["root_mean_squared_error_train"]
    assert cost(best) < min(cost(best * 1.01), cost(best * 0.99))


def test_the_squared_error_is_no_claim_on_other_likelihoods():
    claim = scales.squared_error(subject({"kind": "discretised-logistic"}))
    assert claim.words == ("Does not apply: the likelihood is discretised-logistic.",)
    assert claim.numbers == {}


@pytest.mark.parametrize("claim", [bounds.gap, bounds.terms])
def test_an_autoencoder_has_no_bound(claim: Any):
    assert claim(subject(objective="autoencoder")).words == (bounds.NO_BOUND,)


def test_draws_have_the_codes_mean_and_covariance():
    generator = torch.Generator().manual_seed(0)
    codes_of = torch.randn(500, 3, generator=generator) @ torch.tensor([[3.0, 0, 0], [1, 0.5, 0], [0, 0, 2]]) + 5
    noise = torch.randn(200_000, 3, generator=generator)
    drawn = codes.fitted(codes_of, noise)
    assert torch.allclose(drawn.mean(0), codes_of.mean(0), atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(codes_of.T), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_autoencoder_and_a_vae_stand_side_by_side(labelled: bool, monkeypatch: pytest.MonkeyPatch):
    hurry(monkeypatch)
    numbers = codes.sampling_claim(subject(labelled=labelled)).numbers
    assert set(numbers["samples"]) == {
        f"{name}, {draws}" for name in ("VAE", "AE") for draws in ("N(0, I)", "N(m, S) of its codes")
    }
    assert ("knn_accuracy_vae" in numbers) == labelled
    assert numbers["training_images"] == TINY.training_images
    assert "trained model, its prior" in numbers["frechet"]


def test_binary_images_are_compared_with_binary_ones():
    here = subject({"kind": "bernoulli"})
    features, _ = codes._features(here, here.train)
    expected = torch.full((300, 1, 8, 8), 0.5)
    drawn = (torch.rand(expected.shape, generator=here.generator("binary")) < expected).float()
    assert torch.equal(features(expected), features(drawn))


@pytest.mark.parametrize(("height", "halvings"), [(28, 2), (8, 3), (7, 0), (6, 1)])
def test_the_small_residual_network_fits_the_image(height: int, halvings: int):
    assert len(first_stage.small((1, height, 28 if height != 8 else 8)).channels) == halvings + 1


def test_latents_times_the_scale_factor_have_variance_one():
    claim = first_stage.latent_diffusion(subject())
    numbers = claim.numbers
    assert [picture.name for picture in claim.pictures] == ["latents"]
    assert numbers["here"]["scaled_variance"] == pytest.approx(1, abs=0.1)
    large = numbers["stable_diffusion_size"]
    assert (large["factor"], large["latents"], large["compression"]) == (8, [4, 64, 64], 48)


def test_a_trained_residual_network_is_measured_itself():
    network = {"kind": "residual", "channels": [4, 8], "latent_channels": 1, "blocks": 1}
    here = subject(network=network, latent_dim=16)
    claim = first_stage.latent_diffusion(here)
    assert claim.numbers["here"]["encoder_parameters"] == sum(p.numel() for p in here.model.encoder.parameters())
    assert "the trained model" in claim.words[0]
    x = here.observed(here.train.pixels, "oracle")
    posterior = here.model.encode(x)
    variance = (posterior.mean.var() + torch.exp(posterior.log_variance).mean()).item()
    assert claim.numbers["here"]["scale_factor"] == pytest.approx(variance**-0.5, rel=0.02)
