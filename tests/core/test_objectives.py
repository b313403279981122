import math

import pytest
import torch
from torch import Tensor, nn

from oracles import probabilistic_pca, within
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Likelihood
from vaeline.core.model import VAE
from vaeline.core.objectives import Terms, elbo_terms, surrogate
from vaeline.core.priors import StandardNormal


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_elbo_at_the_true_posterior_is_log_p_on_average() -> None:
    oracle = probabilistic_pca()
    x, model = oracle.sample(3, torch.Generator().manual_seed(1)), oracle.vae()
    elbo = torch.stack([elbo_terms(model, x, noise).elbo for noise in normal(4000, 3, 2)])
    assert within(elbo, oracle.log_likelihood(x))


def test_elbo_falls_short_of_log_p_by_the_posterior_s_error() -> None:
    oracle = probabilistic_pca()
    x = oracle.sample(3, torch.Generator().manual_seed(1))
    truth, wrong = oracle.vae().encode(x), oracle.vae(mean_error=0.3, log_variance_error=0.7)
    q = wrong.encode(x)
    ratio = (q.log_variance - truth.log_variance).exp() + (q.mean - truth.mean) ** 2 / truth.log_variance.exp()
    gap = 0.5 * (ratio - 1 - q.log_variance + truth.log_variance).sum(1)  # KL(q || p(z|x)) of two Gaussians
    elbo = torch.stack([elbo_terms(wrong, x, noise).elbo for noise in normal(4000, 3, 2)])
    assert (gap > 0.1).all()
    assert within(elbo, oracle.log_likelihood(x) - gap)


def test_the_autoencoder_has_no_kl_and_no_noise() -> None:
    oracle = probabilistic_pca()
    x, model = oracle.sample(3, torch.Generator().manual_seed(1)), oracle.vae()
    terms = elbo_terms(model, x, None)
    assert torch.equal(terms.kl_per_dimension, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(terms.reconstruction, model.likelihood.log_prob(x, model.decode(model.encode(x).mean)))


def test_surrogate_weighs_the_kl_by_beta_and_at_one_is_the_elbo() -> None:
    terms = Terms(normal(5), normal(5, 3).square())
    assert torch.equal(surrogate(terms, 1.0, 0.0), terms.elbo)
    for beta in (0.0, 4.0, torch.tensor(0.25)):
        assert torch.allclose(surrogate(terms, beta, 0.0), terms.reconstruction - beta * terms.kl)


def test_free_bits_floor_each_dimension_s_mean_kl_over_the_batch() -> None:
    kl = torch.tensor([[0.1, 2.0], [0.3, 0.0]], dtype=torch.float64)  # means 0.2 and 1.0
    terms = Terms(torch.tensor([-7.0, -9.0], dtype=torch.float64), kl)
    objective = surrogate(terms, 2.0, 0.5)
    assert float(objective.mean()) == pytest.approx(-8 - 2 * (0.5 + 1.0))
    assert float(surrogate(terms, 2.0, 0.1).mean()) == pytest.approx(float(surrogate(terms, 2.0, 0.0).mean()))


def test_below_the_free_bits_a_dimension_s_kl_has_no_gradient() -> None:
    kl = torch.tensor([[0.1, 2.0], [0.3, 0.0]], requires_grad=True)
    surrogate(Terms(torch.zeros(2), kl), 1.0, 0.5).mean().backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, -0.5], [0.0, -0.5]]


class Objective(nn.Module):
    """The training objective as a module's forward, for gradients with respect to every parameter."""

    def __init__(self, likelihood: Likelihood, deterministic: bool, beta: float, free_bits: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2 if deterministic else 4))
            decoder = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)))
        prior = StandardNormal()
        self.model = VAE(
            encoder, decoder, likelihood, prior, shape=(1, 2, 2), latent_dim=2, deterministic=deterministic
        ).double()
        self.deterministic, self.beta, self.free_bits = deterministic, beta, free_bits

    def forward(self, x: Tensor) -> Tensor:
        noise = None if self.deterministic else normal(len(x), 2, seed=4)
        return surrogate(elbo_terms(self.model, x, noise), self.beta, self.free_bits)


@pytest.mark.parametrize("likelihood", [Bernoulli, lambda: Gaussian(None), ContinuousBernoulli, DiscretisedLogistic])
@pytest.mark.parametrize(
    ("deterministic", "beta", "free_bits"),
    [(False, 1.0, 0.0), (False, 4.0, 0.0), (False, 1.0, 0.05), (True, 1.0, 0.0)],
    ids=["elbo", "beta-elbo", "free-bits", "autoencoder"],
)
def test_gradients_equal_finite_differences(
    likelihood: type[Likelihood], deterministic: bool, beta: float, free_bits: float
) -> None:
    objective = Objective(likelihood(), deterministic, beta, free_bits)
    pixels = torch.tensor([[0, 255, 255, 0], [255, 255, 0, 0], [0, 0, 0, 255]], dtype=torch.uint8).view(3, 1, 2, 2)
    x = objective.model.likelihood.observe(pixels, None).double()
    names, values = zip(*objective.named_parameters(), strict=True)

    def value(*values: Tensor) -> Tensor:
        return torch.func.functional_call(objective, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(value, values)


def test_the_kl_of_terms_is_the_sum_of_its_dimensions() -> None:
    q = DiagonalGaussian(normal(4, 3), normal(4, 3, seed=1))
    terms = Terms(torch.zeros(4, dtype=torch.float64), StandardNormal().kl(q))
    assert torch.allclose(terms.kl, q.kl_to_standard_normal().sum(1))
    assert torch.allclose(terms.elbo, -terms.kl)


def test_a_perfect_gaussian_autoencoder_learns_the_sigma_of_its_error() -> None:
    likelihood = Gaussian(None).double()
    x = normal(100, 1, 2, 2, seed=5) * 0.07
    optimiser = torch.optim.LBFGS(likelihood.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -likelihood.log_prob(x, torch.zeros_like(x)).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(likelihood.sigma) == pytest.approx(math.sqrt(float(x.square().mean())), rel=1e-4)
