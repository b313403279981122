"""Evaluation held against probabilistic PCA, where every number is known in closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from oracles import probabilistic_pca
from vaeline import config
from vaeline.core import estimators
from vaeline.core.estimators import Proposal, per_image_noise, per_image_uniform
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.errors import UserError
from vaeline.evaluation import split_metrics
from vaeline.evaluation.split_metrics import (
    FINEST_SQUARED_ERROR,
    bound,
    evaluate,
    gain,
    log_likelihood,
    marginal_kl,
    reconstruct,
    score,
)
from vaeline.training.build import build_model

Result = tuple[dict[str, Any], list[tuple[int, float]]]

PIXELS, LATENTS, SIGMA, SEED = 8, 3, 0.05, 5
PCA = probabilistic_pca(PIXELS, (0.2, 0.1, 0.0), SIGMA, mean=0.5)  # the third dimension carries no information
IMAGES = PCA.pixels(500, seed=1)
OBSERVED = torch.from_numpy(  # the dequantised images that an evaluation with `SEED` scores: [N, 1, 1, D]
    ((IMAGES + per_image_uniform(SEED, range(500), (1, 1, PIXELS)).numpy()) / 256).astype(np.float32).astype(np.float64)
)
EXACT = PCA.log_likelihood(OBSERVED).numpy()  # log p(x) of each image
VARIANCE = PCA.posterior()[1].exp()


def pca(**errors: float) -> VAE:
    """In float32, as trained models are; without errors its encoder is the true posterior."""
    return PCA.vae(**errors).float().requires_grad_(False)


@pytest.fixture(scope="module")
def result() -> Result:
    """The evaluation of the model whose encoder is the true posterior."""
    return scored(pca(), IMAGES)


@pytest.fixture(scope="module")
def test(result: Result) -> dict[str, Any]:
    """Its section on the test split."""
    return result[0]["test"]


def scored(vae: VAE, images: np.ndarray, k: int = 10) -> Result:
    return evaluate(
        vae, images[:200], images, importance_samples=k, proposal="posterior", active_units_threshold=0.01, seed=SEED
    )


def built(likelihood: dict[str, Any], objective: str = "elbo", **more: Any) -> VAE:
    section = {"latent_dim": 4, "network": {"kind": "mlp", "hidden": [16]}, "likelihood": likelihood, **more}
    return build_model(config.Model.model_validate(section), (1, 6, 5), objective, seed=0).eval().requires_grad_(False)


GREY = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 5), dtype=np.uint8)
BLACK_AND_WHITE = 255 * (GREY > 127).astype(np.uint8)


def test_the_nll_is_exact_and_the_bound_tight_at_the_true_posterior(test: dict[str, Any]) -> None:
    """Mistake 6: the wrong sign."""
    assert log_likelihood(pca(), IMAGES, 2, SEED)[0] == pytest.approx(EXACT, abs=2e-4)
    assert test["nll"] == pytest.approx(-EXACT.mean(), abs=1e-5)
    assert test["nll_se"] == pytest.approx(EXACT.std(ddof=1) / math.sqrt(len(EXACT)), rel=1e-4)
    assert abs(test["gap"]) <= 4 * test["gap_se"]
    assert test["gap_se"] < test["elbo_se"]


def test_the_gap_is_the_divergence_from_the_true_posterior() -> None:
    """Mistakes 1 and 4: only with the right weight and sign of the KL is the ELBO short of log p by so much."""
    shift, wider = 0.2, 0.3  # of every posterior mean and log variance
    test = scored(pca(mean_error=shift, log_variance_error=wider), IMAGES, k=2000)[0]["test"]
    divergence = 0.5 * (math.expm1(wider) - wider + shift**2 / VARIANCE).sum()
    assert test["gap"] == pytest.approx(float(divergence), abs=4 * test["gap_se"] + 0.01)
    assert test["gap"] > 4 * test["gap_se"]
    assert test["elbo"] + test["gap"] == pytest.approx(-test["nll"], abs=1e-9)


def test_kl_is_the_closed_form_for_each_dimension(result: Result, test: dict[str, Any]) -> None:
    to_mean, log_variance = PCA.posterior()
    mean, dimensions = (OBSERVED.flatten(1) - PCA.bias) @ to_mean.T, result[1]  # [N, Z]
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    assert [dimension for dimension, _ in dimensions] == [0, 1, 2]
    assert [value for _, value in dimensions] == pytest.approx(kl.mean(0).tolist(), rel=1e-4, abs=1e-5)
    assert test["kl"] == pytest.approx(float(kl.sum(1).mean()), rel=1e-5)
    assert test["active_units"] == 2  # the third carries no information


def test_the_elbo_is_taken_at_a_posterior_sample_not_at_the_mean() -> None:
    """Mistake 9: at the mean, the reconstruction term lacks -tr(W'W V) / (2 sigma^2)."""
    vae, x = pca(), OBSERVED.float()
    at_mean = vae.likelihood.log_prob(x, vae.decode(vae.encode(x).mean)).double().numpy()
    price = float((PCA.weight.square().sum(0) * VARIANCE).sum() / (2 * SIGMA**2))
    difference = at_mean - bound(vae, IMAGES, SEED).reconstruction
    assert difference.mean() == pytest.approx(price, abs=4 * difference.std() / math.sqrt(len(difference)))
    assert price > 0.5


def test_the_elbo_of_each_split_is_reconstruction_minus_kl_in_nats(result: Result) -> None:
    """Mistake 4: the KL reported negated."""
    report, _ = result
    for split, images in (("validation", IMAGES[:200]), ("test", IMAGES)):
        part = report[split]
        assert part["elbo"] == pytest.approx(part["reconstruction"] - part["kl"], abs=1e-9)
        assert part["kl"] > 0
        assert part["elbo"] == bound(pca(), images, SEED).elbo.mean()
    assert set(report["validation"]) < set(report["test"])


@pytest.mark.parametrize("size", [1, 7, 36])
def test_batches_change_nothing_but_the_rounding(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Mistakes 6, 8 and 11: 37 images in batches of 7 leave a short last one, which counts for what it holds."""
    vae, images = pca(mean_error=0.2), IMAGES[:37]
    whole, exact = bound(vae, images, SEED), log_likelihood(vae, images, 40, SEED)[0]
    by_dimension, (errors, means) = marginal_kl(vae, images, SEED), reconstruct(vae, images)
    monkeypatch.setattr(split_metrics, "BATCH", size)
    monkeypatch.setattr(estimators, "PIXELS_AT_ONCE", size * PIXELS)
    parts = bound(vae, images, SEED)
    assert parts.elbo == pytest.approx(whole.elbo, abs=1e-4)
    assert parts.elbo.mean() == pytest.approx(whole.elbo.mean(), abs=1e-5)
    assert marginal_kl(vae, images, SEED) == pytest.approx(by_dimension, rel=1e-5)
    assert log_likelihood(vae, images, 40, SEED)[0] == pytest.approx(exact, abs=1e-4)
    assert reconstruct(vae, images)[0] == pytest.approx(errors, rel=1e-4)
    assert reconstruct(vae, images)[1].numpy() == pytest.approx(means.numpy(), abs=1e-5)
    arrays = (parts.elbo, parts.kl, by_dimension, errors, exact)
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}


def test_few_effective_samples_are_reported_and_another_proposal_finds_what_q_misses(caplog) -> None:
    """Mistake 23."""
    vae, exact = pca(mean_error=0.2, log_variance_error=-3), -EXACT[:50].mean()

    def found(proposal: Proposal) -> dict[str, Any]:
        images, options = IMAGES[:50], {"active_units_threshold": 0.01, "seed": SEED}
        return evaluate(vae, images, images, importance_samples=100, proposal=proposal, **options)[0]["test"]

    missed = found("posterior")
    assert missed["nll"] > exact + 1
    assert missed["effective_samples"] < 10
    assert "of 50 test images fewer than 5 of 100 samples count" in caplog.text
    caplog.clear()
    assert found("laplace")["nll"] == pytest.approx(exact, abs=0.05)
    assert found("laplace")["effective_samples"] > 30
    assert not caplog.text


def test_the_elbo_is_a_whole_density_of_dequantised_pixels_whose_bits_count_the_dequantisation(test) -> None:
    """Mistakes 6 and 7: the Gaussian's constant dropped or added twice; no dequantisation, or not its 8 bits."""
    z = pca().encode(OBSERVED.float()).rsample(per_image_noise(SEED, range(len(IMAGES)), (LATENTS,))).double()
    density = torch.distributions.Normal(z @ PCA.weight.T + PCA.bias, SIGMA)
    expected = density.log_prob(OBSERVED.flatten(1)).sum(1).numpy()
    assert bound(pca(), IMAGES, SEED).reconstruction == pytest.approx(expected, abs=1e-3)
    assert test["bits_per_dimension"] == pytest.approx(8 - test["elbo"] / (PIXELS * math.log(2)))
    assert test["bits_per_dimension_nll"] == pytest.approx(8 - EXACT.mean() / (PIXELS * math.log(2)), abs=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "protocol", "offset"),
    [
        ({"kind": "gaussian"}, "(u8 + u) / 256, u ~ U[0, 1); the density is one on all reals", 8),
        ({"kind": "gaussian", "truncated": True}, "(u8 + u) / 256, u ~ U[0, 1)", 8),
        ({"kind": "continuous-bernoulli"}, "(u8 + u) / 256, u ~ U[0, 1)", 8),
        ({"kind": "discretised-logistic"}, "exact 8-bit pixels", 0),
        ({"kind": "bernoulli"}, "binary pixels, drawn once", 0),
    ],
)
def test_bits_are_named_by_their_protocol_and_only_densities_have_an_offset(likelihood, protocol, offset) -> None:
    """Mistake 7: bits per dimension that do not say of what, or an offset where nothing was dequantised."""
    report, _ = scored(built(likelihood), BLACK_AND_WHITE if likelihood["kind"] == "bernoulli" else GREY)
    test = report["test"]
    assert protocol in report["protocol"]
    assert ("all reals" in protocol) == ("all reals" in report["protocol"])
    assert test["bits_per_dimension"] == pytest.approx(offset - test["elbo"] / (30 * math.log(2)))


def test_a_bad_image_is_named_and_never_left_out_and_one_image_or_grey_ones_under_bernoulli_are_refused() -> None:
    """Mistakes 10 and 11."""
    with pytest.raises(UserError, match="not finite"):
        scored(built({"kind": "bernoulli"}), GREY)
    values = np.ones(10)
    values[[4, 7]] = np.nan, -np.inf
    with pytest.raises(UserError, match=r"test split: the elbo of image 4 is nan \(2 of 10 are not finite\)"):
        split_metrics._mean("test", "elbo", values)
    with pytest.raises(UserError, match=r"data\.test: leaves 1 image"):
        split_metrics._mean("test", "elbo", values[:1])


def test_mse_and_psnr_are_those_of_the_posterior_means_reconstruction(test: dict[str, Any]) -> None:
    x = (IMAGES.reshape(-1, PIXELS) + 0.5) / 256  # without noise: the midpoints
    reconstruction = ((x - 0.5) @ PCA.posterior()[0].numpy().T) @ PCA.weight.numpy().T + 0.5
    errors = np.square(x - reconstruction.clip(0, 1)).mean(1)
    assert test["mse"] == pytest.approx(errors.mean(), rel=1e-4)
    assert test["psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), rel=1e-5)
    perfect = split_metrics.mean_psnr(np.array([0.0, FINEST_SQUARED_ERROR]))
    assert perfect == pytest.approx(20 * math.log10(256 * math.sqrt(12))), "that of rounding to 8 bits"


def test_of_an_autoencoder_only_the_reconstructions_are_reported() -> None:
    report, kl_per_dimension = scored(built({"kind": "gaussian"}, "autoencoder"), GREY)
    assert set(report["validation"]) == {"reconstruction", "reconstruction_se"}
    assert set(report["test"]) == {"reconstruction", "reconstruction_se", "mse", "psnr"}
    assert kl_per_dimension == []


def test_a_prior_that_does_not_factorise_has_a_kl_to_each_marginal_and_one_to_all() -> None:
    vae = built({"kind": "gaussian"}, prior={"kind": "mixture", "components": 3})
    report, kl_per_dimension = scored(vae, GREY, k=1000)
    test = report["test"]
    assert [dimension for dimension, _ in kl_per_dimension] == list(range(vae.latent_dim))
    assert sum(kl for _, kl in kl_per_dimension) != pytest.approx(test["kl"], rel=0.01)
    one = built({"kind": "gaussian"}, prior={"kind": "mixture", "components": 1})  # which factorises
    report, kl_per_dimension = scored(one, GREY)
    assert sum(kl for _, kl in kl_per_dimension) == pytest.approx(report["test"]["kl"], rel=1e-4)
    assert test["elbo"] == pytest.approx(test["reconstruction"] - test["kl"], abs=1e-9)
    assert test["gap"] > -4 * test["gap_se"]


def test_the_gates_scores_are_those_of_the_evaluation(test: dict[str, Any]) -> None:
    scores = score(pca(), IMAGES, seed=SEED, active_units_threshold=0.01)
    assert (scores.elbo.mean(), scores.psnr, scores.active_units) == (test["elbo"], test["psnr"], test["active_units"])
    assert scored(pca(), IMAGES)[0]["test"] == test


def test_the_same_noise_for_both_makes_the_gain_far_surer_than_the_two_elbos() -> None:
    """With sigma alone changed, d = |x - m|^2 (1/s^2 - 1/t^2) / 2 + D log(s/t) for each image, KL and noise alike."""
    models = [built({"kind": "gaussian", "sigma": sigma}) for sigma in (0.3, 0.31)]
    champion, challenger = (score(vae, GREY, seed=1, active_units_threshold=0.01) for vae in models)
    assert gain(champion, champion) == Measured(0.0, 0.0)
    found = gain(challenger, champion)
    quadratic = (challenger.elbo - champion.elbo - 30 * math.log(0.3 / 0.31)) / (0.5 / 0.3**2 - 0.5 / 0.31**2)
    assert (quadratic > 0).all(), "a squared error"
    assert found.value == pytest.approx(challenger.elbo.mean() - champion.elbo.mean())
    unpaired = math.hypot(challenger.elbo.std(ddof=1), champion.elbo.std(ddof=1)) / math.sqrt(len(GREY))
    assert found.se < unpaired / 10
