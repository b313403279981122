from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oracles import probabilistic_pca
from vaeline.core import networks
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Likelihood
from vaeline.core.model import VAE, decoded, interpolate
from vaeline.core.objectives import elbo_terms, surrogate
from vaeline.core.priors import StandardNormal

SHAPE = (1, 9, 7)


def small(likelihood: Likelihood, deterministic: bool = False) -> VAE:
    encoder = networks.mlp_encoder(SHAPE, (8,), 3 if deterministic else 6, "relu")
    decoder = networks.mlp_decoder(SHAPE, (8,), 3, "relu")
    return VAE(encoder, decoder, likelihood, StandardNormal(), shape=SHAPE, latent_dim=3, deterministic=deterministic)


def loss_of(model: VAE, pixels: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    x = model.likelihood.observe(pixels, uniform if model.likelihood.uses_noise else None)
    return -surrogate(elbo_terms(model, x, normal), 0.5, 0.1).mean()


@pytest.mark.parametrize(
    "maker", [Bernoulli, lambda: Gaussian(None), lambda: Gaussian(0.1), ContinuousBernoulli, DiscretisedLogistic]
)
def test_losses_are_one_graph_float32_under_autocast_and_float64_in_a_float64_model(
    maker: Callable[[], Likelihood],
) -> None:
    torch.manual_seed(0)
    model = small(maker())
    arguments = 255 * torch.randint(0, 2, (5, *SHAPE), dtype=torch.uint8), torch.rand(5, *SHAPE), torch.randn(5, 3)
    exact = loss_of(model, *arguments)
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(model, *arguments), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_of(model, *arguments)
        assert model.decode(arguments[2]).dtype == model.encode(arguments[1]).mean.dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.02)
    assert not torch.equal(rounded, exact)
    terms = elbo_terms(model.double(), torch.ones(2, *SHAPE).double(), torch.zeros(2, 3).double())
    assert terms.elbo.dtype == torch.float64


def test_the_posterior_s_variance_is_bounded_whatever_the_encoder_emits_and_a_deterministic_one_is_a_point() -> None:
    """Mistake 14: log-variance unclamped."""
    model, x = small(Bernoulli()), torch.rand(2, *SHAPE)
    nn.init.constant_(model.encoder[-1].bias, 1e6)
    assert torch.isfinite(model.encode(x).log_variance.exp()).all()
    posterior = small(Gaussian(None), deterministic=True).encode(x)
    assert posterior.mean.shape == (2, 3)
    assert torch.allclose(posterior.rsample(torch.randn(2, 3)), posterior.mean, atol=1e-3)
    assert torch.isfinite(posterior.kl_to_standard_normal()).all()


def test_interpolation_runs_straight_from_one_reconstruction_to_the_other() -> None:
    model = probabilistic_pca().vae()  # linear
    x = probabilistic_pca().sample(2, torch.Generator().manual_seed(1))
    path, means = interpolate(model, x, 7), model.encode(x).mean
    assert torch.allclose(path[[0, 3, 6]], decoded(model, torch.stack([means[0], means.mean(0), means[1]])))
    assert not path.requires_grad
