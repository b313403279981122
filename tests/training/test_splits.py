import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_training import CPU, bumps, model
from vaeline import config
from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.core.priors import StandardNormal
from vaeline.data.batches import Resident
from vaeline.training import splits
from vaeline.training.build import build_model
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits, scale_factor, validate

IMAGES = Resident(bumps(30, 1), CPU)
WITHOUT_NOISE = model(config.DiscretisedLogistic(kind="discretised-logistic"))  # in its pixels


def test_mistake_8_every_image_counts_once_and_as_much_as_any_other(monkeypatch: pytest.MonkeyPatch):
    """Eleven images in batches of 4, 4 and 3, the last batch unlike the others.

    Mistakes 2, 4, 7 and 11 as well: the KL's weight and sign, the noise of dequantisation, a short batch dropped.
    """
    monkeypatch.setattr(splits, "VALIDATION_BATCH", 4)
    pixels = np.concatenate([bumps(8, seed=1), np.zeros((3, 1, 8, 8), np.uint8)])
    vae, noise = build_model(model(), (1, 8, 8), "elbo", 1), Noise(1, CPU)
    each = []
    for number, part in enumerate(torch.from_numpy(pixels).split(4)):
        noise.restart("validation", number)
        normal, uniform = noise.normal(len(part), 3), noise.uniform(part.shape)
        for image, z, u in zip(part, normal, uniform, strict=True):
            each.append(elbo_terms(vae, vae.likelihood.observe(image[None], u[None]), z[None]))
    found = validate(vae, Resident(pixels, CPU), noise)
    assert found.reconstruction == pytest.approx(np.mean([terms.reconstruction.item() for terms in each]), rel=1e-6)
    assert found.kl == pytest.approx(np.mean([terms.kl.item() for terms in each]), rel=1e-6)
    batch_means = [np.mean([t.reconstruction.item() for t in each[i : i + 4]]) for i in (0, 4, 8)]
    assert found.reconstruction != pytest.approx(np.mean(batch_means), rel=1e-3)


def test_the_noise_is_the_same_at_each_validation():
    vae, noise = build_model(model(), (1, 8, 8), "elbo", 1), Noise(1, CPU)
    first = validate(vae, IMAGES, noise)
    noise.restart("step", 9)
    assert validate(vae, IMAGES, noise) == first
    assert validate(vae, IMAGES, Noise(2, CPU)) != first


def test_mistake_9_validation_takes_a_sample_and_not_the_mean():
    vae = build_model(WITHOUT_NOISE, (1, 8, 8), "elbo", 1)
    x = vae.likelihood.observe(torch.from_numpy(bumps(30, 1)), None)
    at_the_mean = vae.likelihood.log_prob(x, vae.decode(vae.encode(x).mean)).mean().item()
    found = [validate(vae, IMAGES, Noise(seed, CPU)).reconstruction for seed in (1, 2)]
    assert found[0] != found[1]
    assert max(found) < at_the_mean


def test_an_autoencoder_is_validated_without_noise_in_its_code():
    vae = build_model(WITHOUT_NOISE, (1, 8, 8), "autoencoder", 1)
    first = validate(vae, IMAGES, Noise(1, CPU))
    assert first == validate(vae, IMAGES, Noise(2, CPU))
    assert first.kl == 0


class Encoder(nn.Module):
    """q(z|x) = N(5 + 3 x_i, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        raw = 20 * torch.atanh(torch.full((len(x), 2), 4.0).log() / 20)
        return torch.cat([5 + 3 * x.flatten(1), raw], dim=1)


def test_the_scale_factor_gives_the_latents_variance_one() -> None:
    """Mistake 18: statistics of another split; the validation split here has none of the white pixels."""
    checkers = np.repeat(np.arange(4000) % 2 * 255, 2).astype(np.uint8).reshape(4000, 1, 1, 2)  # two pixels an image
    data = Splits(checkers, np.zeros_like(checkers[:200]), "none")
    vae = VAE(Encoder(), nn.Identity(), Gaussian(0.1), StandardNormal(), shape=(1, 1, 2), latent_dim=2)
    factor = scale_factor(vae, data, 1, CPU)
    variance = 4 + 9 * (255 / 256) ** 2 / 4  # of the samples: that of the means, 9/4, is too small
    assert factor**-2 == pytest.approx(variance, rel=0.05)
    assert factor == scale_factor(vae, data, 1, CPU)
