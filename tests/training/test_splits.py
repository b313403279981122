import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_training import CPU, bumps, model, options, same_weights, train_small
from vaeline import config
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import Bound, elbo_terms, log_weights
from vaeline.core.priors import StandardNormal
from vaeline.data.batches import Resident
from vaeline.errors import UserError
from vaeline.training import splits
from vaeline.training.build import build_model
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits, fitted_prior, latent_scale, validate


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_mistake_8_every_image_counts_once_and_as_much_as_any_other(monkeypatch: pytest.MonkeyPatch, bound: Bound):
    """Eleven images in batches of 4, 4 and 3, the last batch unlike the others; under IWAE 3 samples of each image.

    Mistakes 2, 4, 7 and 11 as well: the KL's weight and sign, the noise of dequantisation, a short batch dropped.
    """
    k = 3 if bound == "iwae" else 1
    monkeypatch.setattr(splits, "VALIDATION_BATCH", 4 * k)
    pixels = np.concatenate([bumps(8, seed=1), np.zeros((3, 1, 8, 8), np.uint8)])
    vae, noise = build_model(model(), (1, 8, 8), bound, 1), Noise(1, CPU)
    each, values = [], []
    for number, part in enumerate(torch.from_numpy(pixels).split(4)):
        noise.restart("validation", number)
        normal = noise.normal(*([k] if k > 1 else []), len(part), 3).view(k, len(part), 3)
        x = vae.likelihood.observe(part, noise.uniform(part.shape))
        for i in range(len(part)):
            each.append(elbo_terms(vae, x[i : i + 1], normal[:, i : i + 1]))
            values.append(log_weights(vae, x[i : i + 1], normal[:, i : i + 1]).logsumexp(0).item() - math.log(k))
    found = validate(vae, Resident(pixels, CPU), noise, bound, k)
    assert found.reconstruction == pytest.approx(np.mean([terms.reconstruction.item() for terms in each]), rel=1e-6)
    if bound == "elbo":
        assert found.kl == pytest.approx(np.mean([terms.kl.item() for terms in each]), rel=1e-6)
    else:
        assert found.bound == pytest.approx(np.mean(values), rel=1e-5) and found.gain > 0
    batch_means = [np.mean([t.reconstruction.item() for t in each[i : i + 4]]) for i in (0, 4, 8)]
    assert found.reconstruction != pytest.approx(np.mean(batch_means), rel=1e-3)


def test_mistake_9_validation_takes_the_same_samples_at_each_call_and_not_the_mean_and_an_autoencoder_none():
    section = model(config.DiscretisedLogistic(kind="discretised-logistic"))  # without noise in its pixels
    images, noise = Resident(bumps(30, 1), CPU), Noise(1, CPU)
    vae, autoencoder = (build_model(section, (1, 8, 8), objective, 1) for objective in ("elbo", "autoencoder"))
    x = vae.likelihood.observe(torch.from_numpy(bumps(30, 1)), None)
    at_the_mean = vae.likelihood.log_prob(x, vae.decode(vae.encode(x).mean)).mean().item()
    first, other = validate(vae, images, noise), validate(vae, images, Noise(2, CPU))
    noise.restart("step", 9)
    assert validate(vae, images, noise) == first
    assert at_the_mean > first.reconstruction != other.reconstruction < at_the_mean
    plain = validate(autoencoder, images, noise)
    assert plain == validate(autoencoder, images, Noise(2, CPU))
    assert plain.kl == 0


class Encoder(nn.Module):
    """q(z|x) = N(5 + 3 x_i, 0.25)."""

    def forward(self, x: Tensor) -> Tensor:
        raw = 20 * torch.atanh(torch.full((len(x), 2), 0.25).log() / 20)
        return torch.cat([5 + 3 * x.flatten(1), raw], dim=1)


def two_pixels() -> VAE:
    return VAE(Encoder(), nn.Identity(), Gaussian(0.1), StandardNormal(), shape=(1, 1, 2), latent_dim=2)


def test_the_scale_gives_the_latents_mean_zero_and_variance_one() -> None:
    """Mistake 18: statistics of another split; the validation split here has none of the white pixels."""
    checkers = np.repeat(np.arange(4000) % 2 * 255, 2).astype(np.uint8).reshape(4000, 1, 1, 2)
    data, vae = Splits(checkers, np.zeros_like(checkers[:200]), "none"), two_pixels()
    mean, factor = latent_scale(vae, data, 1, CPU)
    variance = 0.25 + 9 * (255 / 256) ** 2 / 4  # of the samples: that of the means, 9/4, is too small by 10 %
    assert factor**-2 == pytest.approx(variance, rel=0.05)
    assert mean == pytest.approx(5 + 3 * (255 / 2 + 0.5) / 256, rel=0.01)
    assert (mean, factor) == latent_scale(vae, data, 1, CPU)
    vae.encode = lambda x: DiagonalGaussian(torch.full((len(x), 2), 9.1), torch.full((len(x), 2), -99.0))
    assert latent_scale(vae, data, 1, CPU)[1] > 1e6, "of codes that are all one"


def test_a_fitted_prior_has_the_means_and_covariances_of_the_training_codes() -> None:
    """Mistakes 13 and 18: fitted to another split, or to posterior means, whose variance is less by q's."""
    rng, right = np.random.default_rng(3), np.arange(6000) % 3 == 0
    about = np.where(right[:, None], [200, 60], [60, 180])
    pixels = about + rng.multivariate_normal([0, 0], [[300, 200], [200, 300]], 6000)
    images = pixels.round().clip(0, 255).astype(np.uint8).reshape(6000, 1, 1, 2)
    data = Splits(images, np.zeros_like(images[:200]), "none")
    prior, again = (fitted_prior(two_pixels(), 2, data, 1, CPU) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(prior.parameters(), again.parameters(), strict=True))
    x = (images.reshape(-1, 2) + 0.5) / 256
    order = prior.means[:, 0].argsort(descending=True)
    for k, part in zip(order.tolist(), (right, ~right), strict=True):
        covariance = 9 * np.cov(x[part].T) + 0.25 * np.eye(2)
        found = (prior.roots() @ prior.roots().mT)[k].detach().numpy()
        assert prior.means[k].tolist() == pytest.approx(5 + 3 * x[part].mean(0), abs=0.05)
        assert found == pytest.approx(covariance, abs=0.03)
        assert prior.log_weights()[k].exp().item() == pytest.approx(part.mean(), abs=0.02)


@pytest.mark.parametrize("objective", ["elbo", "autoencoder"])
def test_a_fitted_prior_takes_the_place_of_that_of_the_training_which_goes_on_as_without(
    tmp_path: Path, objective: str
):
    """Mistake 13: a fitted prior is not used."""
    section, prior = options(objective=objective), config.Fitted(kind="fitted", components=3)
    plain = train_small(tmp_path / "plain", section)
    fitted, again = (train_small(tmp_path / name, section, model_section=model(prior=prior)) for name in "ab")
    assert same_weights(fitted, again)
    assert plain.history == fitted.history
    network, before = fitted.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(network[name], before[name]) for name in before)
    assert {name for name in network if name not in before} == {"prior.means", "prior.raw_factors", "prior.logits"}


def test_a_prior_that_cannot_be_fitted_is_refused_before_the_training(tmp_path: Path):
    count = 100
    prior = config.Fitted(kind="fitted", components=count + 1)
    found = f"model.prior.components: found {count + 1}, allowed: at most the {count} training images"
    with pytest.raises(UserError, match=found):
        train_small(tmp_path, model_section=model(prior=prior))
    assert not list(tmp_path.iterdir())
