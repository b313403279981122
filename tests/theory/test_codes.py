"""An autoencoder and a VAE side by side."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from small_theory_context import TINY, hurry, pca_context, small_context
from vaeline import config
from vaeline.theory import codes
from vaeline.theory.claim import Context


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
    claim = codes.latent_space(small_context(labelled=labelled))
    numbers = claim.numbers
    assert set(numbers["samples"]) == {
        f"{name}, {draws}" for name in ("VAE", "AE") for draws in ("N(0, I)", "N(m, S) of its codes")
    }
    assert ("knn_accuracy_vae" in numbers) == ("coloured by class" in claim.pictures[3].caption) == labelled
    assert numbers["training_images"] == TINY.training_images
    assert "trained model, its prior" in numbers["frechet"]
    for name in ("VAE", "AE"):
        assert f"{numbers['frechet'][f'{name}, midpoints']:.2f} for the" in claim.words[3]


def test_the_codes_variances_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch):
    """z of a model with its true posterior are N(0, I); of the same codes, twice as wide, they are not."""
    _, here = pca_context(config.Theory(images=12, training_images=1000, seed=1))
    wide = copy.deepcopy(here.model)
    wide.encoder[1].bias[2:] += 2.5
    monkeypatch.setattr(Context, "trained", lambda self, section, kind: here.model if kind == "elbo" else wide)
    claim = codes.latent_space(here)
    found = claim.numbers["code_variances"]
    assert found["VAE"] == pytest.approx([1, 1], abs=0.2)
    assert min(found["AE"]) > 1.2
    assert f"{min(found['VAE']):.2f} to {max(found['VAE']):.2f} (VAE)" in claim.words[0]


def test_of_a_linear_model_a_part_of_the_code_is_as_good_as_the_principal_components():
    """On images of its own, sigma = 0.05, and 0.1 the scale of the lesser of two latents, 64 pixels."""
    _, here = pca_context(config.Theory(images=12, training_images=1000, seed=1))
    found = codes.kept(here, here.train, here.test)
    assert list(found["this model"]) == list(found["principal components"]) == [1, 2]
    for size, psnr in found["this model"].items():
        assert psnr == pytest.approx(found["principal components"][size], abs=0.3)
    mse = {size: 10 ** (-psnr / 10) for size, psnr in found["this model"].items()}
    assert mse[2] == pytest.approx(0.05**2 * 62 / 64, rel=0.1)
    assert mse[1] - mse[2] == pytest.approx(0.1**2 / 64, rel=0.5)


def test_mixtures_are_weighted_means_of_three():
    three = torch.tensor([[3.0, 0.0], [0.0, 6.0], [0.0, 0.0]])
    mixed = dict(zip(codes.MIXED, codes.mixtures(three), strict=True))
    assert mixed["second"].tolist() == [0, 6]
    assert mixed["1 + 2"].tolist() == [1.5, 3]
    assert mixed["all"].tolist() == pytest.approx([1, 2])


def test_binary_images_are_compared_with_binary_ones():
    here = small_context({"kind": "bernoulli"})
    features, _ = codes._features(here, here.train)
    expected = torch.full((300, 1, 8, 8), 0.5)
    drawn = (torch.rand(expected.shape, generator=here.generator("binary")) < expected).float()
    assert torch.equal(features(expected), features(drawn))


def test_nearness_to_codes_that_are_all_one_is_no_number_and_no_error():
    coded: Any = SimpleNamespace(train_codes=torch.zeros(5, 2), held_out=torch.zeros(4, 2))
    assert not any(math.isfinite(ratio) for ratio in codes._nearness(coded, torch.ones(3, 2)).values())
