import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from oracles import integral
from vaeline.core.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    Likelihood,
    log_mean_exp_line,
)

OUTPUTS = [-60.0, -5.0, -0.3, -0.2499, -1e-3, 0.0, 1e-8, 1e-3, 0.25, 0.7, 8.0, 60.0]
LEVELS = torch.arange(256, dtype=torch.float64)


def scored(likelihood: Likelihood, x: Tensor, output: float) -> Tensor:
    """log p of one-pixel images with the values x [N], all with the same output."""
    images = x.view(-1, 1, 1, 1)
    return likelihood.double().log_prob(images, torch.full_like(images, output)).detach()


def with_scale(scale: float) -> DiscretisedLogistic:
    likelihood = DiscretisedLogistic().double().requires_grad_(False)
    nn.init.constant_(likelihood.log_scale, 10 * math.atanh(math.log(scale) / 10))
    return likelihood


def spread_evenly(likelihood: Likelihood, output: float, count: int = 100_000) -> Tensor:
    """Samples of one pixel from evenly spread uniform noise: the inverse distribution function on a grid."""
    noise = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).view(-1, 1, 1, 1)
    return likelihood.double().sample(torch.full_like(noise, output), noise).flatten()


def test_bernoulli_sums_to_one_over_all_binary_images() -> None:
    output = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64).view(-1, 1, 2, 3)
    total = Bernoulli().log_prob(images, output.expand_as(images)).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("sigma", [None, 0.05, 2.0])
def test_gaussian_integrates_to_one(sigma: float | None) -> None:
    likelihood = Gaussian(sigma).double()
    reach = 12 * float(likelihood.sigma)
    total = integral(lambda x: scored(likelihood, x, 0.4).exp(), 0.4 - reach, 0.4 + reach)
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("output", [*OUTPUTS, -1e4, 1e4])
def test_continuous_bernoulli_integrates_to_one_on_the_unit_interval(output: float) -> None:
    width = min(1.0, 50 / max(abs(output), 1e-9))  # where the density is: beyond it is below exp(-50)
    low = 1 - width if output > 0 else 0.0
    total = integral(lambda x: scored(ContinuousBernoulli(), x, output).exp(), low, low + width)
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("output", [-50.0, -0.1, 0.0, 0.1234, 0.5, 1.0, 1.3, 50.0])
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 0.02, 0.3, 20.0, 2e4])
def test_discretised_logistic_sums_to_one_over_the_256_values(output: float, scale: float) -> None:
    log_prob = scored(with_scale(scale), LEVELS / 255, output)
    assert torch.isfinite(log_prob).all()
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_discretised_logistic_equals_the_difference_of_the_distribution_function() -> None:
    likelihood, output, scale = with_scale(0.05), 0.3, 0.05
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] - 0.5) / 255, torch.tensor([math.inf])])
    truth = torch.sigmoid((edges - output) / scale).diff()
    assert torch.allclose(scored(likelihood, LEVELS / 255, output).exp(), truth, rtol=1e-9, atol=1e-15)


def test_discretised_logistic_sums_to_one_in_float32_too() -> None:
    likelihood = DiscretisedLogistic().requires_grad_(False)
    pixels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    observed = likelihood.observe(pixels, None)
    log_prob = likelihood.log_prob(observed, torch.full_like(observed, 0.6))
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_continuous_bernoulli_normaliser_is_smooth_where_the_series_takes_over() -> None:
    for seam in (-0.25, 0.25):
        below, above = (torch.tensor(seam + step, dtype=torch.float64, requires_grad=True) for step in (-1e-15, 1e-15))
        values = [log_mean_exp_line(side) for side in (below, above)]
        gradients = [torch.autograd.grad(v, side)[0] for v, side in zip(values, (below, above), strict=True)]
        assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), abs=1e-14)
        assert float(gradients[0]) == pytest.approx(float(gradients[1]), abs=1e-13)


def test_continuous_bernoulli_normaliser_at_extremes() -> None:
    slope = torch.tensor([0.0, 1e-30, 1e4, -1e4, 1e30], requires_grad=True)
    value = log_mean_exp_line(slope)
    assert value[0] == 0.0
    assert float(value[2].detach()) == pytest.approx(1e4 - math.log(1e4))
    assert float(value[3].detach()) == pytest.approx(-math.log(1e4))
    value.sum().backward()
    assert torch.isfinite(slope.grad).all()
    assert slope.grad[0] == 0.5


@pytest.mark.parametrize("output", [*OUTPUTS, 500.0, -500.0])
def test_continuous_bernoulli_mean_equals_its_integral(output: float) -> None:
    likelihood = ContinuousBernoulli()
    truth = integral(lambda x: x * scored(likelihood, x, output).exp(), 0.0, 1.0)
    assert float(likelihood.mean(torch.tensor(output, dtype=torch.float64))) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("output", [-0.2, 0.0, 0.4, 1.0, 1.4])
@pytest.mark.parametrize("scale", [1e-4, 0.003, 0.05, 0.5])
def test_discretised_logistic_mean_is_within_half_a_level_of_the_sum(output: float, scale: float) -> None:
    likelihood = with_scale(scale)
    truth = (scored(likelihood, LEVELS / 255, output).exp() * LEVELS / 255).sum()
    mean = likelihood.mean(torch.tensor(output, dtype=torch.float64))
    assert float(mean) == pytest.approx(float(truth), abs=0.51 / 255)
    if scale > 0.01:
        assert float(mean) == pytest.approx(float(truth), abs=1e-4)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), ContinuousBernoulli(), with_scale(0.1)], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("output", [-3.0, 0.0, 0.6, 4.0])
def test_samples_have_the_expected_mean(likelihood: Likelihood, output: float) -> None:
    samples = spread_evenly(likelihood, output)
    mean = likelihood.mean(torch.tensor(output, dtype=torch.float64))
    assert float(samples.mean()) == pytest.approx(float(mean), abs=1e-4)
    assert samples.min() >= 0
    assert samples.max() <= 1


@pytest.mark.parametrize("likelihood", [Gaussian(0.1), ContinuousBernoulli(), with_scale(0.1)])
@pytest.mark.parametrize("output", [-3.0, 0.0, 0.5, 4.0])
def test_samples_rise_with_the_noise(likelihood: Likelihood, output: float) -> None:
    assert (spread_evenly(likelihood, output, 1000).diff() >= 0).all()


def test_gaussian_samples_have_its_mean_and_sigma() -> None:
    samples = spread_evenly(Gaussian(0.05), 0.5)
    assert float(samples.mean()) == pytest.approx(0.5, abs=1e-6)
    assert float(samples.std()) == pytest.approx(0.05, rel=1e-3)


def test_discretised_logistic_samples_each_value_as_often_as_it_is_probable() -> None:
    likelihood = with_scale(0.08)
    counts = torch.bincount((255 * spread_evenly(likelihood, 0.1)).round().long(), minlength=256) / 100_000
    assert torch.allclose(counts.double(), scored(likelihood, LEVELS / 255, 0.1).exp(), atol=2e-5)


def test_continuous_bernoulli_samples_follow_the_distribution_function() -> None:
    for output in (-7.0, 1e-9, 2.0, 300.0):
        samples = spread_evenly(ContinuousBernoulli(), output)
        below = float((samples < 0.7).double().mean())
        truth = integral(lambda x, o=output: scored(ContinuousBernoulli(), x, o).exp(), 0.0, 0.7)
        assert below == pytest.approx(truth, abs=2e-5)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Gaussian(None), Gaussian(0.1), ContinuousBernoulli(), DiscretisedLogistic()]
)
def test_the_ends_of_the_noise_give_finite_samples(likelihood: Likelihood) -> None:
    noise = torch.tensor([0.0, 1 - 2**-24]).view(2, 1, 1, 1)
    for output in (-1e3, 0.0, 1e3):
        samples = likelihood.sample(torch.full_like(noise, output), noise)
        assert ((samples >= 0) & (samples <= 1)).all()


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), with_scale(0.1)])
def test_means_have_the_gradients_of_finite_differences(likelihood: Likelihood) -> None:
    output = torch.tensor([-9.0, -0.2, 0.0, 0.24, 0.26, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(likelihood.mean, output)


class Score(nn.Module):
    """log p as a module's forward, for gradients with respect to its parameters too."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood.double()

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        return self.likelihood.log_prob(x, output)


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Gaussian(None), Gaussian(0.3), ContinuousBernoulli(), DiscretisedLogistic()],
    ids=["bernoulli", "gaussian", "gaussian-fixed", "continuous-bernoulli", "discretised-logistic"],
)
def test_gradients_equal_finite_differences(likelihood: Likelihood) -> None:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.tensor(
        [[0, 255, 0, 255], [255, 0, 255, 0]] if likelihood.measure == "binary" else [[0, 7, 128, 255]] * 2
    )
    x = likelihood.observe(pixels.view(2, 1, 2, 2).to(torch.uint8), None).double()
    output = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    output[0, 0, 0, 0], output[0, 0, 0, 1] = 0.01, 30.0  # where the series is, and far out
    score = Score(likelihood)
    names, values = zip(*score.named_parameters(), strict=True) if list(score.parameters()) else ((), ())

    def log_prob(output: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(score, dict(zip(names, values, strict=True)), (x, output))

    assert torch.autograd.gradcheck(log_prob, (output.requires_grad_(), *values))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(None), ContinuousBernoulli(), DiscretisedLogistic()])
def test_images_are_scored_one_by_one_in_float32(likelihood: Likelihood) -> None:
    pixels = torch.randint(0, 2, (5, 3, 7, 2), generator=torch.Generator().manual_seed(6)).to(torch.uint8) * 255
    output = torch.randn(5, 3, 7, 2, generator=torch.Generator().manual_seed(7))
    x = likelihood.observe(pixels, torch.full(pixels.shape, 0.5))
    together = likelihood.float().log_prob(x, output)
    assert together.shape == (5,)
    assert together.dtype == torch.float32
    alone = torch.cat([likelihood.log_prob(x[i : i + 1], output[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, rtol=1e-6)


def test_dequantised_pixels_stay_within_their_bin_and_the_midpoint_is_its_middle() -> None:
    pixels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    for likelihood in (Gaussian(None), ContinuousBernoulli()):
        lowest = likelihood.observe(pixels, torch.zeros(1, 1, 2, 2))
        highest = likelihood.observe(pixels, torch.full((1, 1, 2, 2), 1 - 2**-24))
        assert torch.equal(lowest * 256, pixels.float())
        assert (highest < lowest + 1 / 256 + 1e-7).all()
        assert (highest <= 1).all()
        assert torch.equal(likelihood.observe(pixels, None), lowest + 0.5 / 256)
        assert lowest.dtype == torch.float32


def test_dynamic_binarisation_draws_each_pixel_with_its_grey_as_probability() -> None:
    noise = ((torch.arange(255) + 0.5) / 255).view(255, 1, 1, 1)
    for grey in (0, 1, 100, 254, 255):
        drawn = Bernoulli().observe(torch.full((255, 1, 1, 1), grey, dtype=torch.uint8), noise)
        assert float(drawn.sum()) == grey
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    for end in (0.0, 1 - 2**-24):
        assert Bernoulli().observe(extremes, torch.full((2, 1, 1, 1), end)).flatten().tolist() == [0.0, 1.0]


def test_learned_sigma_is_a_parameter_and_a_fixed_one_is_not() -> None:
    learned, fixed = Gaussian(None), Gaussian(0.1)
    assert [name for name, _ in learned.named_parameters()] == ["log_sigma"]
    assert not list(fixed.parameters())
    assert float(fixed.sigma) == pytest.approx(0.1)
    assert float(learned.sigma) == pytest.approx(0.3, rel=0.01)


def test_logistic_sigma_is_its_standard_deviation() -> None:
    samples = spread_evenly(with_scale(0.02), 0.5, 1_000_000)
    assert float(samples.std()) == pytest.approx(float(with_scale(0.02).sigma), rel=1e-2)
