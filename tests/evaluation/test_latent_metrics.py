import math

import pytest
import torch
from torch import Tensor

from oracles import normal, seeded, within
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.priors import StandardNormal
from vaeline.evaluation.latent_space import (
    KERNEL_SCALES,
    decompose,
    gaussian_total_correlation,
    maximum_mean_discrepancy,
)


def _decomposed(posterior: DiagonalGaussian, seed: int = 1000) -> tuple[dict[str, Tensor], Tensor]:
    z = posterior.rsample(normal(*posterior.mean.shape, seed=seed).to(posterior.mean))
    return decompose(posterior, z, StandardNormal().log_prob(z)), z


def _linear_gaussian(
    count: int, covariance: Tensor, variance: Tensor, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Posterior means ~ N(0, covariance), posterior variances the same for all: q(z) is a known Gaussian."""
    means = normal(count, len(variance), seed=seed) @ torch.linalg.cholesky(covariance).T
    return _decomposed(DiagonalGaussian(means, variance.log().expand_as(means)), seed + 1000)


COVARIANCE = torch.tensor([[1.5, 0.9], [0.9, 1.0]], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 0.6], dtype=torch.float64)


@pytest.mark.parametrize("covariance", [COVARIANCE, torch.diag(torch.tensor([1.0, 2.0]).double())])
def test_the_decomposition_of_a_linear_gaussian_encoder_is_its_closed_form(covariance: Tensor) -> None:
    found, z = _linear_gaussian(4000, covariance, VARIANCE)
    aggregate = covariance + torch.diag(VARIANCE)
    log_determinant, variances = torch.logdet(aggregate), aggregate.diagonal()
    information = 0.5 * (log_determinant - VARIANCE.log().sum())
    correlation = 0.5 * (variances.log().sum() - log_determinant)  # 0 where the dimensions are independent
    kl_of_dimensions = 0.5 * (variances - 1 - variances.log())
    assert within(found["mutual_information"], information)
    assert within(found["mutual_information_upper"], information)
    assert within(found["total_correlation"], correlation)
    assert within(found["marginal_kl"], correlation + kl_of_dimensions.sum())
    assert within(found["marginals"] - StandardNormal().log_prob(z.unsqueeze(-1)), kl_of_dimensions)
    assert within(found["rate"], information + correlation + kl_of_dimensions.sum())
    assert float(information) > 0.5
    assert gaussian_total_correlation(z) == pytest.approx(float(correlation), rel=0.1, abs=3e-3)


def test_the_bounds_on_the_mutual_information_bracket_it_where_images_are_few() -> None:
    truth = 0.5 * (torch.logdet(COVARIANCE + torch.diag(VARIANCE / 40)) - (VARIANCE / 40).log().sum())
    runs = [_linear_gaussian(60, COVARIANCE, VARIANCE / 40, seed)[0] for seed in range(30)]
    lower = torch.stack([run["mutual_information"].mean() for run in runs])
    upper = torch.stack([run["mutual_information_upper"].mean() for run in runs])
    assert float(lower.mean() + 4 * lower.std() / math.sqrt(30)) < float(truth)
    assert float(upper.mean() - 4 * upper.std() / math.sqrt(30)) > float(truth)
    assert max(float(run["mutual_information"].max()) for run in runs) <= math.log(60) + 1e-12
    assert 0 < float(runs[0]["saturation"].mean()) < 1


def test_near_saturation_the_total_correlation_and_the_marginal_kl_are_upper_bounds_which_fall_with_more_images():
    variance = VARIANCE / 40
    total = COVARIANCE + torch.diag(variance)  # of q(z)
    marginal_kl = 0.5 * (torch.trace(total) - 2 - torch.logdet(total))
    correlation = 0.5 * (total.diagonal().log().sum() - torch.logdet(total))
    for name, truth in (("total_correlation", correlation), ("marginal_kl", marginal_kl)):
        few, many = (
            torch.stack([_linear_gaussian(count, COVARIANCE, variance, seed)[0][name].mean() for seed in range(20)])
            for count in (30, 300)
        )
        assert few.mean() - 4 * few.std() / math.sqrt(20) > many.mean() > truth


def test_the_densities_are_those_of_the_mixture_however_they_are_cut_up(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = DiagonalGaussian(normal(50, 3), normal(50, 3, seed=1))
    z = posterior.rsample(normal(50, 3, seed=2))
    normals = torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_variance).exp())
    densities = normals.log_prob(z[:, None, :])  # [N, N, Z]
    monkeypatch.setattr("vaeline.evaluation.latent_space.DENSITIES_AT_ONCE", 350)  # 7 rows, and one left over
    found = decompose(posterior, z, torch.zeros(50))
    assert torch.allclose(found["marginal_kl"], densities.sum(-1).logsumexp(1) - math.log(50))
    assert torch.allclose(found["marginals"], densities.logsumexp(1) - math.log(50))
    without_itself = densities.sum(-1).masked_fill(torch.eye(50, dtype=torch.bool), -math.inf)
    others = without_itself.logsumexp(1) - math.log(49)
    assert torch.allclose(found["mutual_information_upper"], posterior.log_prob(z) - others)


def test_separate_posteriors_saturate_at_log_n_and_those_equal_to_the_prior_know_nothing() -> None:
    means = 100.0 * torch.arange(500, dtype=torch.float64)[:, None]
    found, _ = _decomposed(DiagonalGaussian(means, torch.full_like(means, -20.0)))
    assert float(found["mutual_information"].mean()) == pytest.approx(math.log(500), abs=1e-9)
    assert bool(found["saturation"].all())
    assert bool(torch.isfinite(found["mutual_information_upper"]).all())
    found, _ = _decomposed(DiagonalGaussian(torch.zeros(100, 4), torch.zeros(100, 4)))
    for part in ("mutual_information", "mutual_information_upper", "marginal_kl", "total_correlation", "saturation"):
        assert float(found[part].abs().max()) < 1e-4
    assert gaussian_total_correlation(torch.cat([normal(100, 1), torch.ones(100, 2)], dim=1)) == 0.0


def test_mmd_of_equal_gaussians_is_zero_within_its_null_deviation() -> None:
    runs = []
    for seed in range(20):
        x, y = normal(2, 300, 3, seed=seed)
        runs.append(maximum_mean_discrepancy(x, y, permutations=100, generator=seeded(0)))
        assert runs[-1]["p_value"] > 1 / 101
    values = torch.tensor([run["squared"] for run in runs])
    assert within(values, 0.0)
    assert values.min() < 0 < values.max()  # unbiased, so negative half the time
    assert float(values.std()) == pytest.approx(sum(run["null_deviation"] for run in runs) / 20, rel=0.5)


def _kernel(difference: Tensor, bandwidth: float) -> Tensor:
    squares = difference.square().sum(-1)
    return torch.stack([s * bandwidth / (s * bandwidth + squares) for s in KERNEL_SCALES]).mean(0)


def test_mmd_is_the_sum_over_pairs_that_its_definition_names() -> None:
    x, y = normal(2, 7, 2)
    found = maximum_mean_discrepancy(x, y + 1, permutations=5, generator=seeded(0))
    pooled = torch.cat([x, y + 1])
    kernel = _kernel(pooled[:, None] - pooled, found["bandwidth"]).fill_diagonal_(0)
    same, apart = (kernel[:7, :7].sum() + kernel[7:, 7:].sum()) / 42, kernel[:7, 7:].mean()
    assert found["squared"] == pytest.approx(float(same - 2 * apart))


def test_mmd_sees_what_mean_and_covariance_do_not() -> None:
    signs = torch.randint(0, 2, (1000, 2), generator=seeded(0)) * 2.0 - 1
    found = maximum_mean_discrepancy(signs, normal(1000, 2), permutations=50, generator=seeded(0))
    assert found["p_value"] == 1 / 51
    assert found["squared"] > 10 * found["null_deviation"]
