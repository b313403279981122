import numpy as np
import pytest
import torch

from small_training import CPU, bumps, model
from vaeline import config
from vaeline.core.objectives import elbo_terms
from vaeline.data.batches import Resident
from vaeline.training import validation
from vaeline.training.build import build_model
from vaeline.training.randomness import Noise
from vaeline.training.validation import validate


def test_mistake_8_every_image_counts_once_and_as_much_as_any_other(monkeypatch: pytest.MonkeyPatch):
    """Eleven images in batches of 4, 4 and 3, the last batch unlike the others.

    Mistakes 2, 4, 7 and 11 as well: the KL's weight and sign, the noise of dequantisation, a short batch dropped.
    """
    monkeypatch.setattr(validation, "BATCH", 4)
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
    vae, images, noise = build_model(model(), (1, 8, 8), "elbo", 1), Resident(bumps(30, 1), CPU), Noise(1, CPU)
    first = validate(vae, images, noise)
    noise.restart("step", 9)
    assert validate(vae, images, noise) == first
    assert validate(vae, images, Noise(2, CPU)) != first


def test_mistake_9_validation_takes_a_sample_and_not_the_mean():
    section = model(config.DiscretisedLogistic(kind="discretised-logistic"))  # needs no other noise
    vae, images = build_model(section, (1, 8, 8), "elbo", 1), Resident(bumps(30, 1), CPU)
    x = vae.likelihood.observe(torch.from_numpy(bumps(30, 1)), None)
    at_the_mean = vae.likelihood.log_prob(x, vae.decode(vae.encode(x).mean)).mean().item()
    found = [validate(vae, images, Noise(seed, CPU)).reconstruction for seed in (1, 2)]
    assert found[0] != found[1]
    assert max(found) < at_the_mean


def test_an_autoencoder_is_validated_without_noise_in_its_code():
    section = model(config.DiscretisedLogistic(kind="discretised-logistic"))
    vae, images = build_model(section, (1, 8, 8), "autoencoder", 1), Resident(bumps(30, 1), CPU)
    first = validate(vae, images, Noise(1, CPU))
    assert first == validate(vae, images, Noise(2, CPU))
    assert first.kl == 0
