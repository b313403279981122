"""SSIM against scikit-image and the definition; the latents' channels against the model's own moments."""

import numpy as np
import pytest
import torch

from model_sections import AUTOENCODER_KL
from small_training import bumps
from vaeline import config
from vaeline.core.model import decoded
from vaeline.evaluation.first_stage import channel_report, mean_similarity, structural_similarity
from vaeline.training.build import build_model

SCIKIT_IMAGE = 0.8004002122114734


def test_ssim_is_that_of_scikit_image():
    """Version 0.26, channel_axis=0, data_range=1, gaussian_weights=True, use_sample_covariance=False."""
    rng = np.random.default_rng(0)
    x = rng.random((3, 16, 20))
    y = np.clip(x + 0.2 * rng.standard_normal(x.shape), 0, 1)
    found = structural_similarity(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
    assert float(found) == pytest.approx(SCIKIT_IMAGE, abs=1e-9)


def test_ssim_of_small_images_is_its_definition():
    x, y = torch.rand(2, 4, 1, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 1.5) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for one, other, found in zip(x.numpy(), y.numpy(), structural_similarity(x, y), strict=True):
        values = []
        for left in range(2):
            u, v = one[0, :, left : left + 5], other[0, :, left : left + 5]
            m, n = (weights * u).sum(), (weights * v).sum()
            s, t, c = ((weights * p).sum() for p in ((u - m) ** 2, (v - n) ** 2, (u - m) * (v - n)))
            values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m**2 + n**2 + 1e-4) * (s + t + 9e-4)))
        assert float(found) == pytest.approx(np.mean(values), abs=1e-12)
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(4, dtype=torch.float64))


def test_a_first_stage_has_a_similarity_and_a_scale_by_channel():
    network = AUTOENCODER_KL | {"latent_channels": 2}
    section = {"latent_dim": 32, "network": network, "likelihood": {"kind": "gaussian"}}
    vae = build_model(config.Model.model_validate(section), (1, 8, 8), "elbo", seed=3).requires_grad_(False)
    pixels = bumps(400, 5)
    channels = channel_report(vae, (2, 4, 4), pixels, seed=1)
    posterior = vae.encode(vae.likelihood.observe(torch.from_numpy(pixels), None))
    for number in range(2):
        own = slice(16 * number, 16 * (number + 1))
        variance = posterior.mean[:, own].var() + posterior.log_variance[:, own].exp().mean()
        channel = channels[str(number)]
        assert channel["mean"] == pytest.approx(float(posterior.mean[:, own].mean()), abs=0.03)
        assert channel["standard_deviation"] ** 2 == pytest.approx(float(variance), rel=0.03)
        assert channel["scale"] == 1 / channel["standard_deviation"]
    x = vae.likelihood.observe(torch.from_numpy(pixels), None)
    similar = structural_similarity(x, decoded(vae, posterior.mean))
    found = mean_similarity(vae, pixels)
    assert (found.value, found.se) == pytest.approx((float(similar.mean()), float(similar.std()) / 20))
    assert channels == channel_report(vae, (2, 4, 4), pixels, seed=1)
