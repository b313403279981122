import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaeline import config
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms, log_weights
from vaeline.core.priors import FullMixture, Mixture, MixtureOfGaussians, Prior, StandardNormal, VampPrior
from vaeline.training.build import build_model

SHAPE = (1, 4, 4)


def _mixture(latent_dim: int = 2, kind: type[Mixture] = MixtureOfGaussians, seed: int = 1) -> Mixture:
    torch.manual_seed(seed)
    prior = kind(5, latent_dim)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            parameter.normal_(std=2.0 if name == "means" else 1.0)
    return prior


def _full(latent_dim: int = 2) -> FullMixture:
    return _mixture(latent_dim, FullMixture, 4)


def _vamp(latent_dim: int = 2) -> VampPrior:
    torch.manual_seed(2)
    prior, encoder = VampPrior(5, SHAPE), nn.Linear(16, 2 * latent_dim)

    def encode(x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(*(3 * encoder(x.flatten(1))).chunk(2, dim=1))

    prior.bind(encode)
    torch.nn.init.uniform_(prior.pseudo_inputs)
    return prior


PRIORS: dict[str, Callable[[int], Prior]] = {
    "standard-normal": lambda latent_dim: StandardNormal(),
    "mixture": _mixture,
    "full": _full,
    "vamp": _vamp,
}


@pytest.mark.parametrize("prior", [_mixture(), _vamp()], ids=["mixture", "vamp"])
def test_a_mixtures_density_is_the_weighted_sum_of_its_gaussians(prior: Mixture) -> None:
    z, gaussians = torch.randn(7, 3, 2), prior.components()
    normal = torch.distributions.Normal(gaussians.mean.double(), torch.exp(0.5 * gaussians.log_variance.double()))
    densities = normal.log_prob(z.double().unsqueeze(-2)).sum(-1).exp()  # [7, 3, K]
    expected = (prior.log_weights().double().exp() * densities).sum(-1).log()
    torch.testing.assert_close(prior.log_prob(z).double(), expected, rtol=1e-5, atol=1e-5)
    assert prior.log_weights().exp().sum().item() == pytest.approx(1, rel=1e-6)


def test_full_components_have_these_covariances_and_curvatures_and_are_set_as_they_are() -> None:
    prior, z = _full(3), torch.randn(4, 3)
    covariances = prior.roots() @ prior.roots().mT
    normal = torch.distributions.MultivariateNormal(prior.means, covariances)
    joint = normal.log_prob(z.unsqueeze(1)) + prior.log_weights()  # [4, K]
    torch.testing.assert_close(prior.log_prob(z), joint.logsumexp(1))
    torch.testing.assert_close(prior.components().log_variance, covariances.diagonal(dim1=1, dim2=2).log())
    expected = (joint.softmax(1).view(4, -1, 1, 1) * covariances.inverse()).sum(1)
    torch.testing.assert_close(prior.precision(z), expected, rtol=1e-4, atol=1e-4)
    other = FullMixture(5, 3)
    other.set(prior.log_weights().exp().detach(), prior.means.detach(), prior.factors().detach())
    torch.testing.assert_close(other.log_prob(z), prior.log_prob(z))


@pytest.mark.parametrize("kind", ["mixture", "full", "vamp"])
def test_the_kl_to_a_marginal_is_the_integral_over_it(kind: str) -> None:
    prior, line = PRIORS[kind](2), torch.linspace(-30, 30, 3001)
    grid = torch.cartesian_prod(line, line)
    density = prior.log_prob(grid).double().exp().view(3001, 3001)
    z = torch.tensor([[0.5, -1.0], [2.0, 0.1]])
    posterior = DiagonalGaussian(torch.tensor([[0.4, -0.8], [1.0, 0.0]]), torch.tensor([[-1.0, -2.0], [0.0, -1.0]]))
    for d in (0, 1):
        marginal = density.sum(1 - d) * 0.02  # p(z_d) on the line
        at = torch.from_numpy(np.interp(z[:, d], line, marginal.detach())).log()
        scale = torch.exp(0.5 * posterior.log_variance[:, d])
        expected = torch.distributions.Normal(posterior.mean[:, d], scale).log_prob(z[:, d]) - at
        torch.testing.assert_close(prior.marginal_kl(posterior, z)[:, d].double(), expected.double(), atol=2e-3, rtol=0)


def test_a_density_survives_narrow_components_far_from_zero_and_huge_variances() -> None:
    """Mistakes 13 and 14: variances that are not learned, or unclamped."""
    prior = _mixture(latent_dim=40)
    with torch.no_grad():
        prior.means.add_(20)
        prior.raw_log_variances.fill_(-10)
    z = prior.means + 0.01 * torch.randn(5, 40)
    gaussians = DiagonalGaussian(prior.means.double(), prior.components().log_variance.double())
    expected = torch.logsumexp(prior.log_weights().double() + gaussians.log_prob(z.double().unsqueeze(1)), dim=1)
    torch.testing.assert_close(prior.log_prob(z).double(), expected, rtol=1e-4, atol=1e-3)
    assert {name for name, _ in prior.named_parameters()} == {"means", "raw_log_variances", "logits"}
    for value in (-1e30, -1e4, 1e4, 1e30):
        torch.nn.init.constant_(prior.raw_log_variances, value)
        assert torch.isfinite(prior.log_prob(z)).all()


@pytest.mark.parametrize("kind", PRIORS)
def test_samples_follow_the_density(kind: str) -> None:
    """Mistake 13: drawn with the factors transposed."""
    prior, count, edge = PRIORS[kind](2), 200_000, 0.5
    z = prior.sample(torch.randn(count, 2, generator=torch.Generator().manual_seed(3))).detach()
    corners = torch.cartesian_prod(torch.arange(-4, 4, edge), torch.arange(-4, 4, edge))
    for corner in corners:
        fine = corner + torch.cartesian_prod(*[(torch.arange(20) + 0.5) * edge / 20] * 2)  # midpoints of the cell
        expected = prior.log_prob(fine).exp().mean().item() * edge**2
        inside = ((z >= corner) & (z < corner + edge)).all(1).double().mean().item()
        assert abs(inside - expected) < 5 * math.sqrt(max(expected, 1e-5) / count) + 0.01 * expected


def _built(kind: str) -> VAE:
    section = {"latent_dim": 2, "network": {"kind": "mlp", "hidden": [8]}, "likelihood": {"kind": "bernoulli"}}
    model = config.Model.model_validate(section | {"prior": {"kind": kind, "components": 3}})
    return build_model(model, SHAPE, "elbo", seed=1)


def test_a_gradient_reaches_the_encoder_through_the_vamp_prior_which_owns_nothing_of_it_nor_does_a_copys() -> None:
    vae = _built("vamp")
    vae.prior.log_prob(torch.randn(6, 2)).sum().backward()
    assert (vae.prior.pseudo_inputs.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.encoder.parameters())
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.pseudo_inputs"]
    vae.zero_grad()
    twin, z = copy.deepcopy(vae), torch.randn(4, 2)
    torch.nn.init.zeros_(vae.encoder[-1].weight)
    assert not torch.equal(vae.prior.log_prob(z), twin.prior.log_prob(z))
    twin.prior.log_prob(z).sum().backward()
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize("kind", ["vamp", "mixture"])
def test_a_mixtures_elbo_is_the_mean_log_weight(kind: str) -> None:
    """Mistake 4: a sampled KL negated."""
    vae, x, noise = _built(kind), (torch.rand(4, *SHAPE) < 0.5).float(), torch.randn(3, 4, 2)
    weights = log_weights(vae, x, noise)
    for samples, expected in ((noise, weights.mean(0)), (noise[0], weights[0])):
        terms = elbo_terms(vae, x, samples)
        assert terms.kl_per_dimension.shape == (4, 1)
        torch.testing.assert_close(terms.elbo, expected)
