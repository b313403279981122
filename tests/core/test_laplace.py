"""The Laplace proposal against exact posteriors and integrals, and against what the encoder's posterior misses."""

from itertools import product

import pytest
import torch
from torch import nn

from oracles import on_a_grid, probabilistic_pca
from vaeline import config
from vaeline.config import Conv, Gated, Model
from vaeline.core import laplace
from vaeline.core.estimators import log_likelihood
from vaeline.core.laplace import laplace_proposal
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Laplace, Likelihood
from vaeline.core.model import VAE
from vaeline.core.priors import FullMixture, MixtureOfGaussians, Prior, StandardNormal
from vaeline.training.build import build_model

PRIORS = {
    "standard normal": StandardNormal,
    "mixture": lambda: MixtureOfGaussians(3, 2),
    "full": lambda: FullMixture(3, 2),
}
LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian": lambda: Gaussian(0.1),
    "laplace": lambda: Laplace(0.3),
    "continuous bernoulli": ContinuousBernoulli,
    "discretised logistic": DiscretisedLogistic,
}


def bent(likelihood: Likelihood, prior: Prior) -> VAE:
    """Two latent dimensions, a crooked decoder of 9 pixels, and an encoder that knows nothing."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 9), nn.Unflatten(1, (1, 3, 3)))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    with torch.no_grad():
        encoder[1].weight.zero_()
        encoder[1].bias.copy_(torch.tensor([0.3, -0.3, -3.0, -3.0]))  # standard deviations of 0.22
    return VAE(encoder, decoder, likelihood, prior, shape=(1, 3, 3), latent_dim=2).requires_grad_(False)


def test_a_linear_gaussian_models_proposal_has_the_posteriors_mode_and_precision() -> None:
    """Mistake 23."""
    pca = probabilistic_pca()
    model = pca.vae(mean_error=0.5, log_variance_error=1.0)
    x = pca.sample(4, torch.Generator().manual_seed(0))
    found = laplace_proposal(model, x)
    weights, sigma = model.decoder[0].weight, model.likelihood.sigma
    precision = torch.eye(2) + weights.mT @ weights / sigma**2
    mode = torch.linalg.solve(precision, weights.mT @ (x.flatten(1) - pca.bias).mT / sigma**2).mT
    assert torch.allclose(found.mode, mode, atol=1e-9)
    assert torch.allclose(found.factor @ found.factor.mT, precision.expand(4, 2, 2), atol=1e-9)


@pytest.mark.parametrize(("likelihood", "prior"), list(product(LIKELIHOODS, PRIORS)))
def test_log_p_is_the_integral_where_the_encoders_posterior_misses_it(likelihood: str, prior: str) -> None:
    """Mistake 23: a proposal that misses the posterior, or is weighed as another."""
    model = bent(LIKELIHOODS[likelihood](), PRIORS[prior]())
    pixels = torch.randint(0, 256, (6, 1, 3, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    if likelihood == "bernoulli":
        pixels = 255 * (pixels > 127).to(torch.uint8)
    model.likelihood.observe = lambda x, _, observe=model.likelihood.observe: observe(x, None)  # type: ignore[method-assign]
    truth = on_a_grid(model, model.likelihood.observe(pixels, None), 6.0, 501)
    found, error = log_likelihood(model, pixels, range(6), k=4000, seed=1, chunk=500, proposal="laplace")
    assert ((found - truth).abs() <= 4 * error + 1e-3).all()
    assert (error < 0.1).all()  # at least 100 effective samples


def test_batches_and_chunks_change_only_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake 6: NLL that depends on the batch size."""
    model = bent(Gaussian(0.1), StandardNormal())
    pixels = torch.randint(0, 256, (5, 1, 3, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    whole, error = log_likelihood(model, pixels, range(5), k=50, seed=1, chunk=50, proposal="laplace")
    parts = [log_likelihood(model, pixels[i : i + 1], [i], k=50, seed=1, chunk=7, proposal="laplace") for i in range(5)]
    assert torch.allclose(whole, torch.cat([part for part, _ in parts]), atol=1e-3)
    for at_once in (2 * 9 * 2, 1):  # derivatives of two images, and of one in one latent
        monkeypatch.setattr(laplace, "DERIVATIVES_AT_ONCE", at_once)
        few, _ = log_likelihood(model, pixels, range(5), k=50, seed=1, chunk=50, proposal="laplace")
        assert ((whole - few).abs() < error / 10).all(), "a step to the mode may fall otherwise by rounding"


@pytest.mark.parametrize("network", [Gated(kind="gated", hidden=[8]), Conv(kind="conv", channels=[4], hidden=8)])
def test_every_network_has_a_proposal_without_a_warning(network: Gated | Conv) -> None:
    section = Model(latent_dim=3, network=network, likelihood=config.Gaussian(kind="gaussian"))
    model = build_model(section, (1, 4, 4), "elbo", seed=1).requires_grad_(False)
    assert laplace_proposal(model, torch.rand(5, 1, 4, 4)).mode.isfinite().all()
