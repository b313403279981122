import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from oracles import integral, normal
from vaeline.core.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    Laplace,
    Likelihood,
    log_mean_exp_line,
)

OUTPUTS = [-60.0, -5.0, -0.2499, -1e-3, 0.0, 1e-8, 0.25, 0.7, 60.0]
each_likelihood = pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Gaussian(None), Laplace(None), ContinuousBernoulli(), DiscretisedLogistic()]
)
LEVELS = torch.arange(256, dtype=torch.float64)


def scored(likelihood: Likelihood, x: Tensor, output: float) -> Tensor:
    """log p of one-pixel images with the values x [N], all with the same output."""
    images = x.view(-1, 1, 1, 1)
    return likelihood.double().log_prob(images, torch.full_like(images, output)).detach()


def check_moments(likelihood: Likelihood, output: float, low: float, high: float) -> None:
    """The density's integral is 1 and its mean is `mean`."""
    total = integral(lambda x: scored(likelihood, x, output).exp(), low, high)
    mean = integral(lambda x: x * scored(likelihood, x, output).exp(), low, high)
    assert total == pytest.approx(1.0, abs=1e-9)
    assert float(likelihood.mean(torch.tensor(output, dtype=torch.float64))) == pytest.approx(mean, abs=1e-9)


def with_scale(scale: float) -> DiscretisedLogistic:
    likelihood = DiscretisedLogistic().double().requires_grad_(False)
    nn.init.constant_(likelihood.log_scale, 10 * math.atanh(math.log(scale) / 10))
    return likelihood


def test_bernoulli_sums_to_one_over_all_binary_images() -> None:
    """Mistake 1: a mean over pixels where a sum belongs."""
    output = 4 * normal(1, 1, 2, 3)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64).view(-1, 1, 2, 3)
    total = Bernoulli().log_prob(images, output.expand_as(images)).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("scale", [None, 0.05, 2.0])
@pytest.mark.parametrize(
    ("kind", "density", "ratio"),
    [(Gaussian, torch.distributions.Normal, 1.0), (Laplace, torch.distributions.Laplace, math.sqrt(2))],
)
def test_a_density_of_real_pixels_is_the_whole_one_of_an_image(kind, density, ratio: float, scale) -> None:
    """Mistake 1: a mean over pixels. Mistake 7: the constant dropped, or sigma fixed at 1."""
    likelihood, x, output = kind(scale).double(), normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    exact = density(output, likelihood.sigma / ratio)
    assert torch.allclose(likelihood.log_prob(x, output), exact.log_prob(x).sum(dim=(1, 2, 3)), rtol=1e-9)
    assert float(likelihood.sigma) == pytest.approx(0.3 if scale is None else scale * ratio, rel=0.02)
    assert exact.stddev.flatten()[0] == pytest.approx(float(likelihood.sigma))
    assert [bool(p.requires_grad) for p in likelihood.parameters()] == [True] * (scale is None)


def test_a_laplace_likelihood_is_smoothed_over_normal_outputs() -> None:
    """Mistake 23."""
    likelihood = Laplace(0.2).double()
    e = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).view(-1, 1, 1, 1)
    for output, spread in ((0.1, 0.3), (0.4, 0.05), (0.9, 1e-4)):
        x, at, wide = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.35, output, spread))
        found = likelihood.smoothed_log_prob(x, at, wide.clone)
        expected = likelihood.log_prob(x.expand_as(e), output + spread * e).mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize("output", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 50.0])
def test_a_truncated_gaussian_integrates_to_one_and_to_its_mean_on_the_unit_interval(sigma, output) -> None:
    likelihood = Gaussian(sigma, truncated=True).double()
    check_moments(likelihood, output, max(0.0, output - 12 * sigma), min(1.0, output + 12 * sigma))
    x, at = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.2, output))
    assert torch.autograd.gradcheck(lambda o: likelihood.log_prob(x, o), at.requires_grad_())


@pytest.mark.parametrize("output", [*OUTPUTS, -1e4, 1e4])
def test_continuous_bernoulli_integrates_to_one_and_to_its_mean(output: float) -> None:
    width = min(1.0, 50 / max(abs(output), 1e-9))  # where the density is: beyond it is below exp(-50)
    low = 1 - width if output > 0 else 0.0
    check_moments(ContinuousBernoulli(), output, low, low + width)


@pytest.mark.parametrize("output", [-50.0, -0.2, 0.0, 0.1234, 1.0, 1.4, 50.0])
@pytest.mark.parametrize("scale", [1e-4, 0.003, 0.05, 0.5, 2e4])
def test_discretised_logistic_sums_to_one_and_nearly_to_its_mean(output: float, scale: float) -> None:
    likelihood = with_scale(scale)
    log_prob = scored(likelihood, LEVELS / 255, output)
    assert torch.isfinite(log_prob).all()
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    if abs(output) < 2 and scale < 1:
        mean = float(likelihood.mean(torch.tensor(output, dtype=torch.float64)))
        tolerance = 1e-4 if scale > 0.01 else 0.51 / 255
        assert mean == pytest.approx(float((log_prob.exp() * LEVELS / 255).sum()), abs=tolerance)


def test_discretised_logistic_is_the_difference_of_the_distribution_function_with_its_standard_deviation() -> None:
    output, scale = 0.3, 0.05
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] - 0.5) / 255, torch.tensor([math.inf])])
    truth = torch.sigmoid((edges - output) / scale).diff()
    assert torch.allclose(scored(with_scale(scale), LEVELS / 255, output).exp(), truth, rtol=1e-9, atol=1e-15)
    observed = DiscretisedLogistic().observe(LEVELS.to(torch.uint8).view(-1, 1, 1, 1), None)
    log_prob = DiscretisedLogistic().log_prob(observed, torch.full_like(observed, 0.6)).detach()
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-4), "in float32 too"
    probability = scored(with_scale(0.02), LEVELS / 255, 0.5).exp()
    variance = (probability * (LEVELS / 255 - 0.5).square()).sum()
    assert math.sqrt(variance) == pytest.approx(float(with_scale(0.02).sigma), rel=1e-2)


def test_continuous_bernoulli_normaliser_is_smooth_where_the_series_takes_over_and_finite_at_extremes() -> None:
    for seam in (-0.25, 0.25):
        below, above = (torch.tensor(seam + step, dtype=torch.float64, requires_grad=True) for step in (-1e-15, 1e-15))
        values = [log_mean_exp_line(side) for side in (below, above)]
        gradients = [torch.autograd.grad(v, side)[0] for v, side in zip(values, (below, above), strict=True)]
        assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), abs=1e-14)
        assert float(gradients[0]) == pytest.approx(float(gradients[1]), abs=1e-13)

    slope = torch.tensor([0.0, 1e-30, 1e4, -1e4, 1e30], requires_grad=True)
    value = log_mean_exp_line(slope)
    assert value[0] == 0.0
    assert float(value[2].detach()) == pytest.approx(1e4 - math.log(1e4))
    assert float(value[3].detach()) == pytest.approx(-math.log(1e4))
    value.sum().backward()
    assert torch.isfinite(slope.grad).all()
    assert slope.grad[0] == 0.5


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), with_scale(0.1)])
def test_means_have_the_gradients_of_finite_differences(likelihood: Likelihood) -> None:
    output = torch.tensor([-9.0, -0.2, 0.0, 0.24, 0.26, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(likelihood.mean, output)


@each_likelihood
def test_gradients_equal_finite_differences(likelihood: Likelihood) -> None:
    pixels = torch.tensor(
        [[0, 255, 0, 255], [255, 0, 255, 0]] if likelihood.measure == "binary" else [[0, 7, 128, 255]] * 2
    )
    x = likelihood.observe(pixels.view(2, 1, 2, 2).to(torch.uint8), None).double()
    output = normal(2, 1, 2, 2, seed=5)
    output[0, 0, 0, 0], output[0, 0, 0, 1] = 0.01, 30.0  # where the series is, and far out
    likelihood.double()
    parameters = list(likelihood.parameters())  # gradcheck moves them in place
    assert torch.autograd.gradcheck(
        lambda output, *_: likelihood.log_prob(x, output), (output.requires_grad_(), *parameters)
    )


@each_likelihood
def test_images_are_scored_one_by_one_and_pixels_add_up_in_float32(likelihood: Likelihood) -> None:
    """Mistake 1: a mean over pixels where a sum belongs."""
    pixels = (normal(5, 3, 7, 2) > 0).to(torch.uint8) * 255
    output = normal(5, 3, 7, 2, seed=7).float()
    x = likelihood.observe(pixels, torch.full(pixels.shape, 0.5))
    together = likelihood.float().log_prob(x, output)
    assert (together.shape, together.dtype) == ((5,), torch.float32)
    alone = torch.cat([likelihood.log_prob(x[i : i + 1], output[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, rtol=1e-6)
    twice = likelihood.log_prob(torch.cat([x, x], 3), torch.cat([output, output], 3))
    assert torch.allclose(twice, 2 * together, rtol=1e-5)


def test_dequantised_pixels_stay_within_their_bin_and_the_midpoint_is_its_middle() -> None:
    """Mistake 7: no dequantisation."""
    pixels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    for likelihood in (Gaussian(None), Laplace(None), ContinuousBernoulli()):
        assert likelihood.uses_noise
        lowest = likelihood.observe(pixels, torch.zeros(1, 1, 2, 2))
        highest = likelihood.observe(pixels, torch.full((1, 1, 2, 2), 1 - 2**-24))
        assert torch.equal(lowest * 256, pixels.float())
        assert (highest < lowest + 1 / 256 + 1e-7).all()
        assert (highest <= 1).all()
        assert torch.equal(likelihood.observe(pixels, None), lowest + 0.5 / 256)


def test_dynamic_binarisation_draws_each_pixel_with_its_grey_as_probability() -> None:
    noise = ((torch.arange(255) + 0.5) / 255).view(255, 1, 1, 1)
    for grey in (0, 1, 100, 254, 255):
        drawn = Bernoulli().observe(torch.full((255, 1, 1, 1), grey, dtype=torch.uint8), noise)
        assert float(drawn.sum()) == grey
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    for end in (0.0, 1 - 2**-24):
        assert Bernoulli().observe(extremes, torch.full((2, 1, 1, 1), end)).flatten().tolist() == [0.0, 1.0]


def test_grey_pixels_have_no_bernoulli_likelihood() -> None:
    """Mistake 10: grey pixels scored as Bernoulli, which is better than every published number."""
    pixels = torch.tensor([0, 255, 128, 1], dtype=torch.uint8).view(4, 1, 1, 1)
    log_prob = Bernoulli().log_prob(Bernoulli().observe(pixels, None), torch.ones(4, 1, 1, 1))
    assert log_prob.isnan().tolist() == [False, False, True, True]


def test_a_learned_sigma_is_a_parameter_and_best_at_the_root_mean_squared_error() -> None:
    """Mistake 7: sigma fixed at 1. Mistake 13: a learned variance in no optimiser."""
    likelihood, error = Gaussian(None).double(), 0.05 * normal(50, 1, 4, 4)
    assert isinstance(DiscretisedLogistic().log_scale, nn.Parameter)
    with torch.no_grad():
        likelihood.log_sigma.copy_(10 * torch.atanh(error.square().mean().sqrt().log() / 10))
    assert float(likelihood.sigma) == pytest.approx(float(error.square().mean().sqrt()))
    likelihood.log_prob(error, torch.zeros_like(error)).mean().backward()
    assert abs(float(likelihood.log_sigma.grad)) < 1e-9


@pytest.mark.parametrize("value", [-1e30, -1e4, 1e4, 1e30])
def test_huge_learned_variances_overflow_nowhere(value: float) -> None:
    """Mistake 14: a variance that is a parameter, unclamped."""
    gaussian, logistic, x = Gaussian(None), DiscretisedLogistic(), torch.rand(2, 1, 3, 3)
    for likelihood, parameter in ((gaussian, gaussian.log_sigma), (logistic, logistic.log_scale)):
        nn.init.constant_(parameter, value)
        assert torch.isfinite(likelihood.log_prob(x, 1 - x)).all()


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
