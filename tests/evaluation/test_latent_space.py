"""The section `latent` held against probabilistic PCA, whose aggregate posterior is its prior."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from oracles import normal, probabilistic_pca
from vaeline import config
from vaeline.core import estimators
from vaeline.core.model import VAE
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import latent_space, probes
from vaeline.evaluation.latent_space import encode, latent_report
from vaeline.evaluation.probes import BINS
from vaeline.training.build import build_model

PIXELS, LATENTS, SIGMA, SEED = 8, 3, 0.05, 5
SCALES = (0.2, 0.1, 0.0)  # the third dimension carries no information
INFORMATION = sum(0.5 * math.log1p((scale / SIGMA) ** 2) for scale in SCALES)
PCA = probabilistic_pca(PIXELS, SCALES, SIGMA, mean=0.5)


@pytest.fixture(scope="module")
def splits() -> list[Split]:
    """Training, validation and test images that probabilistic PCA draws; the label is the first latent's sign."""
    found = []
    for seed, count in enumerate((1500, 700, 1000), 1):
        z = normal(count, LATENTS, seed=seed)  # with which `PCA.pixels` begins
        found.append(Split(PCA.pixels(count, seed), (z[:, 0] > 0).long().numpy(), z.numpy()))
    return found


def vae(**errors: float) -> VAE:
    return PCA.vae(**errors).float().requires_grad_(False).eval()


def report(model: VAE, splits: list[Split], images: int = 1000, seed: int = SEED) -> dict[str, Any]:
    return latent_report(model, *splits, images=images, seed=seed)


def without_labels(splits: list[Split]) -> list[Split]:
    return [Split(split.pixels) for split in splits]


@pytest.fixture(scope="module")
def result(splits: list[Split]) -> dict[str, Any]:
    return report(vae(), splits)


def test_the_true_posterior_aggregates_to_the_prior_and_holds_the_information_of_probabilistic_pca(result) -> None:
    expected = dict.fromkeys(("marginal_kl", "total_correlation", "dimension_wise_kl"), 0.0)
    for name, truth in (expected | dict.fromkeys(("rate", "mutual_information"), INFORMATION)).items():
        assert result[name] == pytest.approx(truth, abs=4 * result[f"{name}_se"]), name
    assert result["total_correlation_gaussian"] == pytest.approx(0, abs=0.01)
    assert result["mmd"]["p_value"] > 0.01
    assert result["mmd"]["bandwidth"] == pytest.approx(2 * LATENTS, rel=0.1)
    assert result["mutual_information"] < result["mutual_information_upper"] <= result["rate"]
    assert result["mutual_information"] + result["marginal_kl"] == pytest.approx(result["rate"], abs=1e-9)
    assert result["total_correlation"] + result["dimension_wise_kl"] == pytest.approx(result["marginal_kl"], abs=1e-5)
    assert result["saturation"] < 0.05
    assert result["log_images"] == math.log(1000)


def test_a_posterior_beside_the_prior_is_seen_in_marginal_kl_and_mmd_and_not_in_the_information(
    splits: list[Split], result: dict[str, Any]
) -> None:
    shifted = report(vae(mean_error=0.5), without_labels(splits))
    assert shifted["marginal_kl"] - result["marginal_kl"] == pytest.approx(LATENTS * 0.5**2 / 2, abs=0.15)
    assert shifted["mutual_information"] == pytest.approx(result["mutual_information"], abs=1e-4)
    assert shifted["mmd"]["p_value"] == pytest.approx(1 / 201)
    assert shifted["mmd"]["squared"] > 10 * shifted["mmd"]["null_deviation"]


def test_probes_read_from_the_latents_what_they_hold(result: dict[str, Any]) -> None:
    """Mistake 18: probes that learn from the images they are asked about do better than any reader can."""
    probe = result["probes"]
    assert (probe["train_images"], probe["test_images"]) == (1500, 1000)
    best = 1 - math.atan(SIGMA / SCALES[0]) / math.pi  # of any reader: the sign of z from z + sigma / scale * noise
    for kind in ("knn_accuracy", "linear_accuracy"):
        for of in ("posterior_means", "pca", "pixels"):
            assert best - 0.06 < probe[kind][of] < best + 4 * probe[kind][f"{of}_se"]
    accuracy = probe["linear_accuracy"]["posterior_means"]
    assert probe["linear_accuracy"]["posterior_means_se"] == pytest.approx(
        math.sqrt(accuracy * (1 - accuracy) / 1000), rel=1e-2
    )


def test_the_frechet_distance_ranks_real_images_above_those_of_a_wrong_decoder(
    splits: list[Split], result: dict[str, Any]
) -> None:
    right, wrong = result["frechet_cnn_features"], vae()
    wrong.decoder[0].bias.add_(0.3)
    distances = report(wrong, splits)["frechet_cnn_features"]
    assert right["images"] == 700  # as many of each, so that the distances compare
    assert right["classifier_accuracy"] > 0.85
    for of in ("reconstructions", "prior_samples"):
        assert distances[of] > 5 * max(right[of], right["validation_images"]) > 0
    assert distances["validation_images"] == right["validation_images"]


def test_the_gap_of_probabilistic_pca_is_its_closed_form_and_a_lost_factor_costs(result: dict[str, Any]) -> None:
    correlations = [1 / (1 + (SIGMA / scale) ** 2) for scale in SCALES[:2]]  # of z and a sample of its posterior
    gaps = [-0.5 * math.log1p(-(rho**2)) / math.log(BINS) for rho in correlations]
    assert result["mig"] == pytest.approx(sum(gaps) / 3, rel=0.2)  # the third factor is not in the images
    assert 0.25 < result["dci"]["disentanglement"] < 0.6  # it is spread over all dimensions
    assert 0.4 < result["dci"]["informativeness"] < 0.67


def test_the_report_is_a_function_of_its_arguments_and_batches_change_the_rounding_alone(
    splits: list[Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CLASSIFIER_STEPS", 20)
    first, second = (json.dumps(report(vae(), splits, 200), allow_nan=False) for _ in range(2))
    assert first == second
    assert json.dumps(report(vae(), splits, 200, seed=SEED + 1)) != first
    pixels = splits[2].pixels[:50]
    whole = encode(vae(), pixels, SEED).mean
    monkeypatch.setattr(estimators, "PIXELS_AT_ONCE", 7 * PIXELS)
    assert torch.allclose(encode(vae(), pixels, SEED).mean, whole, atol=1e-5)


def test_scores_need_labels_or_factors_and_enough_images(splits: list[Split], monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(vae(), without_labels(splits), images=100)
    assert not {"probes", "frechet_cnn_features", "mig", "dci"} & set(found)
    assert found["images"] == found["decomposed_images"] == 100
    few = [Split(split.pixels, None, split.factors) for split in splits]
    assert "mig" not in report(vae(), few, images=39)
    assert "mig" in report(vae(), few, images=40)
    monkeypatch.setattr(latent_space, "DENSITIES", 3 * 50**2)
    assert report(vae(), without_labels(splits))["decomposed_images"] == 50


@pytest.mark.parametrize("count", [2, 10])
def test_very_few_images_still_give_finite_numbers(splits: list[Split], count: int) -> None:
    json.dumps(report(vae(), [split.take(count, 0) for split in splits]), allow_nan=False)


def built(likelihood: str, objective: str = "elbo", **prior: Any) -> VAE:
    section = {"latent_dim": LATENTS, "network": {"kind": "mlp", "hidden": [16]}, "likelihood": {"kind": likelihood}}
    return build_model(config.Model.model_validate(section | prior), (1, 1, PIXELS), objective, seed=1).eval()


def test_an_autoencoder_has_no_posterior_to_take_apart_and_a_mixture_no_kl_of_dimensions(splits: list[Split]) -> None:
    found = report(built("gaussian", "autoencoder"), splits, images=50)
    assert set(found) == {"images", "probes", "frechet_cnn_features"}
    model = built("gaussian", prior={"kind": "mixture", "components": 3})
    found = report(model, without_labels(splits), images=100)
    assert "dimension_wise_kl" not in found
    assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(found["rate"])


def test_images_of_a_binary_model_are_binary_and_grey_training_images_are_drawn(splits: list[Split]) -> None:
    model = built("bernoulli")
    (decoded,) = latent_space._decoded(model, torch.zeros(20, LATENTS), SEED)
    (observed,) = latent_space._observed(model, splits[0].pixels[:20], SEED)
    for images in (decoded, observed):
        assert set(images.unique().tolist()) == {0.0, 1.0}


def test_a_subset_is_random_and_keeps_what_belongs_together(splits: list[Split]) -> None:
    numbered = Split(splits[0].pixels, np.arange(1500), np.arange(1500.0)[:, None])
    part = numbered.take(200, seed=1)
    assert len(part) == len(set(part.labels)) == 200
    assert (part.pixels == numbered.pixels[part.labels]).all()
    assert (part.factors[:, 0] == part.labels).all()
    assert (part.labels[:100] > 750).sum() == pytest.approx(50, abs=20)  # its beginning is as random
    assert len(numbered.take(9999, seed=1)) == 1500
