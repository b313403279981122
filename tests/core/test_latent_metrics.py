import math

import pytest
import torch
from torch import Tensor

from oracles import within
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.latent_metrics import (
    KERNEL_SCALES,
    Decomposition,
    decompose,
    gaussian_total_correlation,
    inverse_multiquadrics,
    maximum_mean_discrepancy,
)
from vaeline.core.priors import StandardNormal


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=_generator(seed), dtype=torch.float64)


def _linear_gaussian(count: int, covariance: Tensor, variance: Tensor, seed: int = 0) -> tuple[Decomposition, Tensor]:
    """Posterior means ~ N(0, covariance), posterior variances the same for all: q(z) is a known Gaussian."""
    means = _normal(count, len(variance), seed=seed) @ torch.linalg.cholesky(covariance).T
    posterior = DiagonalGaussian(means, variance.log().expand_as(means))
    z = posterior.rsample(_normal(*means.shape, seed=seed + 1000))
    return decompose(posterior, z, StandardNormal().log_prob(z)), z


COVARIANCE = torch.tensor([[1.5, 0.9], [0.9, 1.0]], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 0.6], dtype=torch.float64)


def test_the_decomposition_of_a_linear_gaussian_encoder_is_its_closed_form() -> None:
    found, z = _linear_gaussian(4000, COVARIANCE, VARIANCE)
    aggregate = COVARIANCE + torch.diag(VARIANCE)
    log_determinant, variances = torch.logdet(aggregate), aggregate.diagonal()
    information = 0.5 * (log_determinant - VARIANCE.log().sum())
    correlation = 0.5 * (variances.log().sum() - log_determinant)
    kl_of_dimensions = 0.5 * (variances - 1 - variances.log())
    assert within(found.mutual_information, information)
    assert within(found.mutual_information_upper, information)
    assert within(found.total_correlation, correlation)
    assert within(found.marginal_kl, correlation + kl_of_dimensions.sum())
    assert within(found.marginals - StandardNormal().log_prob(z.unsqueeze(-1)), kl_of_dimensions)
    assert within(found.rate, information + correlation + kl_of_dimensions.sum())
    assert float(information) > 0.5
    assert float(correlation) > 0.1
    assert gaussian_total_correlation(z) == pytest.approx(float(correlation), rel=0.1)


def test_the_bounds_on_the_mutual_information_bracket_it_where_images_are_few() -> None:
    truth = 0.5 * (torch.logdet(COVARIANCE + torch.diag(VARIANCE / 40)) - (VARIANCE / 40).log().sum())
    runs = [_linear_gaussian(60, COVARIANCE, VARIANCE / 40, seed)[0] for seed in range(30)]
    lower = torch.stack([run.mutual_information.mean() for run in runs])
    upper = torch.stack([run.mutual_information_upper.mean() for run in runs])
    assert float(lower.mean() + 4 * lower.std() / math.sqrt(30)) < float(truth)
    assert float(upper.mean() - 4 * upper.std() / math.sqrt(30)) > float(truth)


def test_the_parts_sum_to_the_whole_for_every_image() -> None:
    posterior = DiagonalGaussian(2 * _normal(300, 5).float(), _normal(300, 5, seed=1).float() - 1)
    z = posterior.rsample(_normal(300, 5, seed=2).float())
    prior = StandardNormal()
    found = decompose(posterior, z, prior.log_prob(z))
    assert torch.allclose(found.mutual_information + found.marginal_kl, found.rate, rtol=1e-12, atol=1e-12)
    dimensions = (found.marginals - prior.log_prob(z.unsqueeze(-1)).double()).sum(1)
    assert torch.allclose(found.total_correlation + dimensions, found.marginal_kl, atol=1e-4)  # float32 log p(z)
    assert torch.allclose(found.posterior, posterior.log_prob(z).double(), atol=1e-4)
    assert torch.allclose(found.rate, (posterior.log_prob(z) - prior.log_prob(z)).double(), atol=1e-4)


def test_the_densities_are_those_of_the_mixture_however_they_are_cut_up(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = DiagonalGaussian(_normal(50, 3), _normal(50, 3, seed=1))
    z = posterior.rsample(_normal(50, 3, seed=2))
    normals = torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_variance).exp())
    densities = normals.log_prob(z[:, None, :])  # [N, N, Z]
    expected = densities.sum(-1).logsumexp(1) - math.log(50)
    monkeypatch.setattr("vaeline.core.latent_metrics.DENSITIES_AT_ONCE", 350)  # 7 rows, and one left over
    found = decompose(posterior, z, torch.zeros(50))
    assert torch.allclose(found.aggregate, expected)
    assert torch.allclose(found.marginals, densities.logsumexp(1) - math.log(50))
    without_itself = densities.sum(-1).masked_fill(torch.eye(50, dtype=torch.bool), -math.inf)
    assert torch.allclose(found.others, without_itself.logsumexp(1) - math.log(49))


def test_mutual_information_of_separate_posteriors_saturates_at_log_n_and_says_so() -> None:
    means = 100.0 * torch.arange(500, dtype=torch.float64)[:, None]
    posterior = DiagonalGaussian(means, torch.full_like(means, -20.0))
    z = posterior.rsample(_normal(500, 1))
    found = decompose(posterior, z, StandardNormal().log_prob(z))
    assert float(found.mutual_information.mean()) == pytest.approx(math.log(500), abs=1e-9)
    assert bool(found.saturation.all())
    assert bool(torch.isfinite(found.mutual_information_upper).all())


def test_no_images_mutual_information_exceeds_log_n() -> None:
    found, _ = _linear_gaussian(200, COVARIANCE, VARIANCE / 100)
    assert float(found.mutual_information.max()) <= math.log(200) + 1e-12
    assert 0 < float(found.saturation.double().mean()) < 1


def test_posteriors_equal_to_the_prior_know_nothing() -> None:
    posterior = DiagonalGaussian(torch.zeros(100, 4), torch.zeros(100, 4))
    z = posterior.rsample(_normal(100, 4).float())
    found = decompose(posterior, z, StandardNormal().log_prob(z))
    for part in (found.mutual_information, found.mutual_information_upper, found.marginal_kl, found.total_correlation):
        assert float(part.abs().max()) < 1e-4
    assert not bool(found.saturation.any())


def test_independent_dimensions_have_no_total_correlation() -> None:
    found, z = _linear_gaussian(4000, torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)), VARIANCE)
    assert within(found.total_correlation, 0.0)
    assert gaussian_total_correlation(z) == pytest.approx(0, abs=3e-3)


def test_dimensions_that_never_move_carry_no_gaussian_total_correlation() -> None:
    z = torch.cat([_normal(100, 1), torch.ones(100, 2)], dim=1)
    assert gaussian_total_correlation(z) == 0.0


def test_mmd_of_equal_gaussians_is_zero_within_its_null_deviation() -> None:
    values, deviations = [], []
    for seed in range(20):
        x, y = _normal(2, 300, 3, seed=seed)
        found = maximum_mean_discrepancy(x, y, permutations=100, generator=_generator())
        values.append(found.value)
        deviations.append(found.null_deviation)
        assert found.p_value > 1 / 101
    assert within(torch.tensor(values), 0.0)
    assert min(values) < 0 < max(values)  # unbiased, so negative half the time
    assert float(torch.tensor(values).std()) == pytest.approx(sum(deviations) / 20, rel=0.5)


def test_mmd_of_shifted_gaussians_is_their_population_value() -> None:
    x, y = _normal(2, 1000, 3)
    found = maximum_mean_discrepancy(x + 0.5, y, permutations=100, generator=_generator())
    assert found.p_value == 1 / 101
    assert found.value > 10 * found.null_deviation
    assert found.bandwidth == pytest.approx(6, rel=0.1)
    u, v = _normal(2, 200_000, 3, seed=5)  # E k over pairs drawn afresh
    same, apart = _kernel((u - v), found.bandwidth), _kernel(u - v + 0.5, found.bandwidth)
    assert found.value == pytest.approx(float(2 * same - 2 * apart), rel=0.3)


def _kernel(difference: Tensor, bandwidth: float) -> Tensor:
    squares = difference.square().sum(1)
    return torch.stack([s * bandwidth / (s * bandwidth + squares) for s in KERNEL_SCALES]).mean()


def test_mmd_is_the_sum_over_pairs_that_its_definition_names() -> None:
    x, y = _normal(2, 7, 2)
    found = maximum_mean_discrepancy(x, y + 1, permutations=5, generator=_generator())
    kernel = inverse_multiquadrics(torch.cat([x, y + 1]), found.bandwidth)
    pairs = [(i, j) for i in range(7) for j in range(7)]
    same = sum(float(kernel[i, j] + kernel[7 + i, 7 + j]) for i, j in pairs if i != j) / 42
    apart = sum(float(kernel[i, 7 + j]) for i, j in pairs) / 49
    assert found.value == pytest.approx(same - 2 * apart)


def test_mmd_sees_what_mean_and_covariance_do_not() -> None:
    signs = torch.randint(0, 2, (1000, 2), generator=_generator()) * 2.0 - 1
    found = maximum_mean_discrepancy(signs, _normal(1000, 2), permutations=50, generator=_generator())
    assert found.value > 10 * found.null_deviation
