import pytest
import torch
from torch import Tensor, nn

from oracles import probabilistic_pca, within
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Likelihood
from vaeline.core.model import VAE
from vaeline.core.objectives import Terms, elbo_terms, surrogate
from vaeline.core.priors import StandardNormal


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("mean_error", "log_variance_error"), [(0.0, 0.0), (0.3, 0.7)])
def test_elbo_falls_short_of_log_p_by_the_posterior_s_error(mean_error: float, log_variance_error: float) -> None:
    """Mistakes 1 and 4: only with the right weight and sign of the KL is the bound tight at p(z|x)."""
    oracle = probabilistic_pca()
    x = oracle.sample(3, torch.Generator().manual_seed(1))
    wrong = oracle.vae(mean_error=mean_error, log_variance_error=log_variance_error)
    truth, q = oracle.vae().encode(x), wrong.encode(x)
    ratio = (q.log_variance - truth.log_variance).exp() + (q.mean - truth.mean) ** 2 / truth.log_variance.exp()
    gap = 0.5 * (ratio - 1 - q.log_variance + truth.log_variance).sum(1)  # KL(q || p(z|x)) of two Gaussians
    elbo = elbo_terms(wrong, x.repeat(4000, 1, 1, 1), normal(12_000, 2)).elbo.view(4000, 3)
    assert ((gap > 0.1) == (mean_error > 0)).all()
    assert within(elbo, oracle.log_likelihood(x) - gap)


def test_the_autoencoder_has_no_kl_and_no_noise() -> None:
    """Mistake 9: the reconstruction at the mean less the KL, called an ELBO, can exceed log p(x)."""
    oracle = probabilistic_pca()
    x, model = oracle.sample(3, torch.Generator().manual_seed(1)), oracle.vae()
    terms = elbo_terms(model, x, None)
    assert torch.equal(terms.kl_per_dimension, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(terms.reconstruction, model.likelihood.log_prob(x, model.decode(model.encode(x).mean)))


def test_surrogate_weighs_the_kl_by_beta_and_the_reported_bound_does_not() -> None:
    """Mistake 12: a reported bound that includes regularisers or the annealed beta."""
    terms = Terms(torch.tensor([-10.0, -20.0]), torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    assert terms.kl.tolist() == [3.0, 3.5]
    assert torch.equal(surrogate(terms, 1.0, 0.0), terms.elbo)
    for beta, free_bits in [(0.0, 0.0), (4.0, 0.0), (torch.tensor(0.25), 0.0), (1.0, 5.0)]:
        value = surrogate(terms, beta, free_bits)
        assert value.tolist() != terms.elbo.tolist() == [-13.0, -23.5]
        if not free_bits:
            assert torch.allclose(value, terms.reconstruction - beta * terms.kl)


def test_free_bits_floor_each_dimension_s_mean_kl_over_the_batch_and_stop_its_gradient() -> None:
    """Mistake 13: an option that nothing reads."""
    kl = torch.tensor([[0.1, 2.0], [0.3, 0.0]], dtype=torch.float64, requires_grad=True)  # means 0.2 and 1.0
    terms = Terms(torch.tensor([-7.0, -9.0], dtype=torch.float64), kl)
    objective = surrogate(terms, 2.0, 0.5).mean()
    assert float(objective.detach()) == pytest.approx(-8 - 2 * (0.5 + 1.0))
    low, none = (float(surrogate(terms, 2.0, free_bits).mean().detach()) for free_bits in (0.1, 0.0))
    assert low == pytest.approx(none)
    objective.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, -1.0], [0.0, -1.0]]


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
    [(False, 4.0, 0.0), (False, 1.0, 0.05), (True, 1.0, 0.0)],
    ids=["beta-elbo", "free-bits", "autoencoder"],
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
