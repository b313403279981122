import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import kl_by_quadrature
from vaeline.core.distributions import LARGEST_LOG_VARIANCE, LOG_VARIANCE_BOUND, DiagonalGaussian, bounded_log_variance
from vaeline.core.priors import StandardNormal


def gaussian(mean: float, log_variance: float) -> DiagonalGaussian:
    return DiagonalGaussian(
        torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[log_variance]], dtype=torch.float64)
    )


@pytest.mark.parametrize("mean", [-3.0, 0.0, 5.0])
@pytest.mark.parametrize("log_variance", [-6.0, 0.0, 1.4])
def test_closed_form_kl_equals_numerical_integration(mean: float, log_variance: float) -> None:
    """Mistake 4: KL reported negated; a misplaced parenthesis that divides log-variance by variance."""
    kl = float(gaussian(mean, log_variance).kl_to_standard_normal())
    assert kl == pytest.approx(kl_by_quadrature(mean, log_variance), abs=1e-9)


@given(st.floats(-10, 10), st.floats(-20, 20))
def test_kl_is_never_negative(mean: float, log_variance: float) -> None:
    q = DiagonalGaussian(torch.tensor([mean]), torch.tensor([log_variance]))  # float32
    assert float(q.kl_to_standard_normal()) >= 0


def test_kl_is_zero_only_at_the_prior_and_keeps_its_digits_near_it_in_float32() -> None:
    assert float(gaussian(0.0, 0.0).kl_to_standard_normal()) == 0.0
    for mean, log_variance in [(1e-5, 0.0), (0.0, 1e-5), (0.0, -1e-5)]:
        assert float(gaussian(mean, log_variance).kl_to_standard_normal()) > 0
    near = DiagonalGaussian(torch.zeros(1), torch.tensor([1e-3]))
    assert float(near.kl_to_standard_normal()) == pytest.approx(0.5 * (math.expm1(1e-3) - 1e-3), rel=1e-3)


def test_log_prob_equals_the_textbook_density_for_any_leading_axes() -> None:
    """Mistake 4: a misplaced parenthesis that divides log-variance by variance."""
    generator = torch.Generator().manual_seed(2)
    mean, log_variance = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(7, 2, 3, 4, generator=generator, dtype=torch.float64)
    truth = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
    assert torch.allclose(DiagonalGaussian(mean, log_variance).log_prob(z), truth, atol=1e-12)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert torch.allclose(StandardNormal().log_prob(z), standard, atol=1e-12)


def test_samples_and_kl_have_the_gradients_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    mean, raw, noise = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)

    def values(mean: torch.Tensor, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = DiagonalGaussian(mean, bounded_log_variance(raw))
        return q.rsample(noise), q.kl_to_standard_normal(), q.log_prob(noise)

    assert torch.autograd.gradcheck(values, (mean.requires_grad_(), raw.requires_grad_()))


def test_soft_bound_never_overflows_leaves_small_values_alone_and_lets_nan_through() -> None:
    """Mistake 14: log-variance unclamped, whose exponential overflows."""
    raw = torch.tensor([-3e38, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38, math.inf, -math.inf], requires_grad=True)
    bounded = bounded_log_variance(raw)
    assert bounded.max() <= LARGEST_LOG_VARIANCE
    assert bounded.min() >= -LOG_VARIANCE_BOUND
    q = DiagonalGaussian(torch.zeros(9), bounded)
    total = q.kl_to_standard_normal().sum() + q.rsample(torch.ones(9)).sum() + q.log_prob(torch.ones(9)).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(raw.grad).all()
    small = torch.linspace(-2, 0.2, 101, dtype=torch.float64)
    assert torch.allclose(bounded_log_variance(small), small, atol=0.01)
    assert bounded_log_variance(torch.tensor(math.nan)).isnan()
