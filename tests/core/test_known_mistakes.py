"""Mistakes found in widely used VAE code, each held off by a test whose docstring states it."""

import math

import pytest
import torch
from torch import Tensor

from oracles import probabilistic_pca, within
from vaeline.core import networks
from vaeline.core.distributions import DiagonalGaussian, bounded_log_variance
from vaeline.core.estimators import importance_log_likelihood, log_likelihood, log_weights
from vaeline.core.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import Terms, elbo_terms, surrogate
from vaeline.core.priors import MixtureOfGaussians, StandardNormal
from vaeline.core.units import bits_per_dimension


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reconstruction_is_summed_over_pixels_as_the_kl_is_over_dimensions() -> None:
    """Mistake 1: a pixel-mean MSE beside a summed KL makes the effective beta D/2 times what it says."""
    likelihood, x, output = Gaussian(1.0).double(), normal(2, 1, 3, 4), normal(2, 1, 3, 4, seed=1)
    constant = 12 * 0.5 * math.log(2 * math.pi)
    summed = 0.5 * (x - output).square().sum(dim=(1, 2, 3))
    assert torch.allclose(likelihood.log_prob(x, output), -summed - constant)
    for any_likelihood in (likelihood, Bernoulli(), ContinuousBernoulli(), DiscretisedLogistic().double()):
        once = any_likelihood.log_prob(x.sigmoid(), output)
        twice = any_likelihood.log_prob(torch.cat([x, x], 3).sigmoid(), torch.cat([output, output], 3))
        assert torch.allclose(twice, 2 * once)


def test_at_beta_one_the_best_posterior_is_the_true_one() -> None:
    """Mistake 1, seen from the optimum: only with the right weight is the objective stationary at p(z|x)."""
    oracle = probabilistic_pca()
    model, x = oracle.vae(), oracle.sample(1, torch.Generator().manual_seed(1))

    def slope(beta: float) -> Tensor:
        values = torch.stack([surrogate(elbo_terms(model, x, n), beta, 0.0) for n in normal(2000, 1, 2)])
        return torch.autograd.grad(values.mean(), model.encoder[1].bias)[0].abs().max()

    assert slope(1.0) < 0.1
    assert slope(2.0) > 0.3


def test_importance_weights_are_of_the_density_and_not_its_inverse() -> None:
    """Mistake 3: IWAE weights from +loss instead of -loss: the likeliest sample gets the least weight."""
    oracle = probabilistic_pca()
    model, x = oracle.vae(log_variance_error=0.7), oracle.sample(1, torch.Generator().manual_seed(1))
    weights = log_weights(model, x, torch.stack([torch.zeros(1, 2), torch.full((1, 2), 3.0)]).double())
    assert weights[0] > weights[1]  # the mean of the posterior against its tail


def test_importance_weights_hold_log_p_minus_log_q_at_the_sample_and_not_the_analytic_kl() -> None:
    """Mistake 3: with the closed-form KL in place of log q - log p the mean weight is no estimate of p(x)."""
    oracle = probabilistic_pca()
    model, x = oracle.vae(log_variance_error=0.7), oracle.sample(1, torch.Generator().manual_seed(1))
    noise, truth = normal(20_000, 1, 2), oracle.log_likelihood(x)
    assert within((log_weights(model, x, noise) - truth).exp(), 1.0)
    analytic = torch.stack([elbo_terms(model, x, n).elbo for n in noise[:5000]])
    assert not within((analytic - truth).exp(), 1.0)


def test_the_importance_weighted_gradient_is_that_of_detached_normalised_weights() -> None:
    """Mistake 3: weights not detached in the surrogate sum_k w_k log w_k change its gradient."""
    oracle = probabilistic_pca()
    model, x = oracle.vae(log_variance_error=0.7), oracle.sample(2, torch.Generator().manual_seed(1))
    weights, parameters = log_weights(model, x, normal(5, 2, 2)), list(model.parameters())
    bound, _ = importance_log_likelihood(weights)
    normalised = weights.softmax(0)
    gradients = {
        name: torch.autograd.grad(value.sum(), parameters, retain_graph=True)
        for name, value in {
            "bound": bound,
            "detached": (normalised.detach() * weights).sum(0),
            "attached": (normalised * weights).sum(0),
        }.items()
    }
    for bound_gradient, right, wrong in zip(*gradients.values(), strict=True):
        assert torch.allclose(bound_gradient, right)
        assert not torch.allclose(bound_gradient, wrong)


def test_kl_is_positive_and_its_parentheses_are_right() -> None:
    """Mistake 4: KL reported negated; a misplaced parenthesis that divides log-variance by variance."""
    q = DiagonalGaussian(torch.tensor([[1.0]]), torch.tensor([[math.log(4.0)]]))
    kl = float(q.kl_to_standard_normal())
    assert kl == pytest.approx(0.5 * (1 + 4 - 1 - math.log(4)))
    assert kl > 0
    assert float(Terms(torch.zeros(1), q.kl_to_standard_normal()).elbo) == pytest.approx(-kl)


def test_the_importance_weighted_bound_is_the_log_of_the_mean_weight() -> None:
    """Mistake 5: reporting the surrogate, or the log of the summed weights, is optimistic by up to log k."""
    same = torch.full((100, 1), -7.0)
    assert float(importance_log_likelihood(same)[0]) == pytest.approx(-7.0)
    weights = 3 * normal(100, 1)
    bound, _ = importance_log_likelihood(weights)
    assert float(bound) == pytest.approx(math.log(float(weights.exp().mean())))
    surrogate_value = (weights.softmax(0) * weights).sum(0)
    assert surrogate_value > bound + 1  # what must not be reported


def small(likelihood: Gaussian | DiscretisedLogistic) -> tuple[VAE, Tensor]:
    shape = (1, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, decoder = networks.mlp_encoder(shape, (8,), 6, "tanh"), networks.mlp_decoder(shape, (8,), 3, "tanh")
    pixels = torch.randint(0, 256, (10, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return VAE(encoder, decoder, likelihood, StandardNormal(), shape=shape, latent_dim=3), pixels


def test_log_likelihood_depends_neither_on_the_batch_nor_rounds_its_samples_down() -> None:
    """Mistake 6: NLL that depends on the batch size, floors the sample count, or has the wrong sign."""
    model, pixels = small(DiscretisedLogistic())
    whole, _ = log_likelihood(model, pixels, range(10), k=7, seed=1, chunk=3)  # 3 does not divide 7
    for chunk in (7, 3):
        alone = [log_likelihood(model, pixels[i : i + 1], [i], k=7, seed=1, chunk=chunk)[0] for i in range(10)]
        assert torch.allclose(whole, torch.cat(alone), atol=1e-4)
    fewer, _ = log_likelihood(model, pixels, range(10), k=6, seed=1, chunk=3)
    assert not torch.allclose(whole, fewer, atol=1e-4)
    assert (whole < 0).all()  # log of a probability


def test_the_gaussian_keeps_its_constant() -> None:
    """Mistake 7: the constant dropped in one place and added in another."""
    x, output = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    for likelihood in (Gaussian(0.2).double(), Gaussian(None).double()):
        truth = torch.distributions.Normal(output, likelihood.sigma).log_prob(x).sum(dim=(1, 2, 3))
        assert torch.allclose(likelihood.log_prob(x, output), truth, rtol=1e-9)


def test_sigma_is_in_pixels_on_the_unit_interval_and_is_what_the_error_says() -> None:
    """Mistake 7: sigma fixed at 1 on [0, 1] pixels; a learned one is best at the root mean squared error."""
    likelihood, error = Gaussian(None).double(), 0.05 * normal(50, 1, 4, 4)
    with torch.no_grad():
        likelihood.log_sigma.copy_(10 * torch.atanh(error.square().mean().sqrt().log() / 10))
    assert float(likelihood.sigma) == pytest.approx(float(error.square().mean().sqrt()))
    likelihood.log_prob(error, torch.zeros_like(error)).mean().backward()
    assert likelihood.log_sigma.grad is not None
    assert abs(float(likelihood.log_sigma.grad)) < 1e-9


def test_densities_see_dequantised_pixels_and_a_uniform_one_has_eight_bits() -> None:
    """Mistake 7: no dequantisation: a density on 256 points has no finite bits per dimension."""
    uniform = ContinuousBernoulli()
    pixels = torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8)
    x = uniform.observe(pixels, torch.rand(1, 1, 4, 4))
    nats = float(uniform.log_prob(x, torch.zeros(1, 1, 4, 4)))
    assert bits_per_dimension(nats, 16, density_on_unit_interval=True) == pytest.approx(8.0)
    assert uniform.uses_noise
    assert Gaussian(None).uses_noise
    assert (x * 256).floor().to(torch.uint8).equal(pixels)


def test_a_deterministic_z_gives_no_elbo() -> None:
    """Mistake 9: the reconstruction at the mean less the KL is called an ELBO, though it can exceed log p(x)."""
    oracle = probabilistic_pca(sigma=0.5)
    x = oracle.sample(1, torch.Generator().manual_seed(1))
    model, truth = oracle.vae(log_variance_error=1.0), oracle.log_likelihood(x)
    terms = elbo_terms(model, x, None)
    impostor = terms.reconstruction - model.prior.kl(model.encode(x)).sum(1)
    assert impostor > truth  # which is why `elbo_terms` gives no KL with a deterministic z
    assert torch.equal(terms.kl, torch.zeros(1, dtype=torch.float64))
    sampled = torch.stack([elbo_terms(model, x, noise).elbo for noise in normal(2000, 1, 2)])
    assert sampled.mean() < truth


def test_grey_pixels_have_no_bernoulli_likelihood() -> None:
    """Mistake 10: grey pixels scored as Bernoulli, which is better than every published number."""
    pixels = torch.tensor([0, 255, 128, 1], dtype=torch.uint8).view(4, 1, 1, 1)
    x = Bernoulli().observe(pixels, None)
    log_prob = Bernoulli().log_prob(x, torch.ones(4, 1, 1, 1))
    assert log_prob.isnan().tolist() == [False, False, True, True]


def test_the_reported_bound_knows_neither_beta_nor_free_bits() -> None:
    """Mistake 12: a reported bound that includes regularisers or the annealed beta."""
    terms = Terms(torch.tensor([-10.0, -20.0]), torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    assert terms.elbo.tolist() == [-13.0, -23.5]
    for beta, free_bits in [(0.0, 0.0), (4.0, 0.0), (1.0, 5.0)]:
        assert surrogate(terms, beta, free_bits).tolist() != terms.elbo.tolist()
        assert terms.elbo.tolist() == [-13.0, -23.5]


def test_huge_log_variances_overflow_nowhere() -> None:
    """Mistake 14: log-variance unclamped, whose exponential overflows."""
    for value in (-1e30, -1e4, 1e4, 1e30):
        raw = torch.full((1, 2), value, requires_grad=True)
        q = DiagonalGaussian(torch.zeros(1, 2), bounded_log_variance(raw))
        total = q.kl_to_standard_normal().sum() + q.rsample(torch.ones(1, 2)).sum() + q.log_prob(torch.ones(1, 2)).sum()
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("value", [-1e30, -1e4, 1e4, 1e30])
def test_huge_learned_variances_overflow_nowhere(value: float) -> None:
    """Mistake 14: a variance that is a parameter of the likelihood or the prior, unclamped."""
    gaussian, logistic, prior = Gaussian(None), DiscretisedLogistic(), MixtureOfGaussians(3, 2)
    x, z = torch.rand(2, 1, 3, 3), torch.randn(2, 2)
    for parameter in (gaussian.log_sigma, logistic.log_scale, prior.raw_log_variances):
        torch.nn.init.constant_(parameter, value)
    for score in (gaussian.log_prob(x, 1 - x), logistic.log_prob(x, 1 - x), prior.log_prob(z)):
        assert torch.isfinite(score).all()


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_likelihoods_work_on_logits_of_any_size(logit: float) -> None:
    """Mistake 14: a sigmoid and then a logarithm, where logits would do."""
    for likelihood in (Bernoulli(), ContinuousBernoulli(), DiscretisedLogistic()):
        output = torch.full((2, 1, 1, 1), logit, requires_grad=True)
        log_prob = likelihood.log_prob(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), output)
        log_prob.sum().backward()
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(output.grad).all()
        assert log_prob.max() > -20  # the end that the logit means is likely, the other is not
        assert log_prob.min() < -100
