"""p(x|z) families: what a decoder's output says about the pixels.

`output` is what the decoder emits: unbounded reals, one a pixel, [B, C, H, W].
"""
# ruff: noqa: D102 - the base class documents every method

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vaeline.core.distributions import LOG_VARIANCE_BOUND, soft_bound

Measure = Literal["binary", "density", "discrete"]
START_SIGMA = 0.3  # about the spread of pixels on [0, 1]: where a learned sigma starts
LOG_SIGMA_BOUND = LOG_VARIANCE_BOUND / 2


class Likelihood(nn.Module):
    """Interface of p(x|z); as it stands, the data space of a density of dequantised pixels."""

    uses_noise: ClassVar[bool] = True  # does `observe` want fresh uniform noise when training and evaluating?
    measure: ClassVar[Measure] = "density"  # of x: binary values, a density of dequantised pixels, 256 discrete values

    @property
    def sigma(self) -> Tensor | None:
        """A pixel's standard deviation about its mean, on [0, 1], detached; None where there is no such one."""
        return None

    def observe(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """uint8 pixels [B, C, H, W] in data space, float32: x = (pixels + noise) / 256, noise uniform on [0, 1) or 1/2.

        Uniform dequantisation (Theis et al. 2016, arXiv:1511.01844).
        """
        return (pixels + (0.5 if noise is None else noise)) * (1 / 256)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|output) in nats per image: [B, C, H, W] twice -> [B]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The expected pixels on [0, 1]: [B, C, H, W]."""
        raise NotImplementedError

    def smoothed_log_prob(self, x: Tensor, output: Tensor, spread: Callable[[], Tensor]) -> Tensor:
        """Smooth log p(x|z) in nats: where log p has kinks, its mean over outputs normal about `output`; [B].

        `spread` computes their standard deviations, of x's shape, where they are needed.
        """
        return self.log_prob(x, output)

    def start(self, mean: Tensor) -> Tensor:
        """The last bias, elementwise, of a decoder that is to begin at these pixels: the logit, cut at 0.01 and 0.99.

        Of a truncated Gaussian and a continuous Bernoulli the expected pixels are then nearer to 1/2.
        """
        return torch.logit(mean, eps=0.01)


class Bernoulli(Likelihood):
    """Binary pixels: log p = sum_i x_i l_i - softplus(l_i), with l the output, the logit of x = 1."""

    uses_noise = False
    measure = "binary"

    def observe(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """x = pixels / 255, all 0 or 1; with noise, x ~ Bernoulli(pixels / 255) (dynamic binarisation).

        A grey pixel has no Bernoulli probability: without noise it becomes NaN, and so does all that follows from it.
        """
        if noise is not None:
            return (255 * noise).lt_(pixels)  # in place: 0 or 1 in float32, five times as fast as by way of bool
        grey = (pixels > 0) & (pixels < 255)
        return (pixels / 255).masked_fill(grey, math.nan)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)


class Gaussian(Likelihood):
    """Dequantised pixels, x_i ~ N(output_i, sigma^2), with one sigma for all pixels, fixed or learned.

    log p = -|x - output|^2 / (2 sigma^2) - D log sigma - D/2 log(2 pi): the squared error with the weight and the
    constant that make it a density on R^D (Rybkin, Daniilidis & Levine 2021, arXiv:2006.13202), part of whose mass no
    pixel can have. `truncated` to [0, 1]^D, for outputs there, it is divided by its mass there.
    """

    log_sigma: Tensor  # scalar; the learned one before its soft bound

    def __init__(self, sigma: float | None, truncated: bool = False) -> None:
        super().__init__()
        self.learned, self.truncated = sigma is None, truncated
        log_sigma = torch.tensor(math.log(START_SIGMA if sigma is None else sigma))
        self.log_sigma = nn.Parameter(log_sigma) if self.learned else nn.Buffer(log_sigma)

    def _log_sigma(self) -> Tensor:
        return soft_bound(self.log_sigma, LOG_SIGMA_BOUND) if self.learned else self.log_sigma

    @property
    def sigma(self) -> Tensor:
        return torch.exp(self._log_sigma()).detach()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        squared_error = F.mse_loss(output, x, reduction="none").flatten(1).sum(1)  # [B]
        log_sigma, dimensions = self._log_sigma(), x[0].numel()
        weight = 0.5 * torch.exp(-2 * log_sigma)
        log_density = -weight * squared_error - dimensions * (log_sigma + 0.5 * math.log(2 * math.pi))
        return log_density - self._mass(output).log().flatten(1).sum(1) if self.truncated else log_density

    def mean(self, output: Tensor) -> Tensor:
        if not self.truncated:
            return output.clamp(0, 1)
        sigma = torch.exp(self._log_sigma())
        below, above = (torch.exp(-0.5 * (edge / sigma).square()) for edge in (output, 1 - output))
        return (output + sigma * (below - above) / (math.sqrt(2 * math.pi) * self._mass(output))).clamp(0, 1)

    def _mass(self, output: Tensor) -> Tensor:
        """Of N(output, sigma^2) on [0, 1], elementwise: both terms are positive for outputs there, so none cancels."""
        scale = math.sqrt(2) * torch.exp(self._log_sigma())
        return 0.5 * (torch.erf(output / scale) + torch.erf((1 - output) / scale))


class Laplace(Likelihood):
    """Dequantised pixels, x_i ~ Laplace(output_i, b): log p = -|x - output|_1 / b - D log(2 b), b fixed or learned.

    The absolute error as a likelihood: a few pixels far off weigh less than under a Gaussian.
    """

    log_scale: Tensor  # scalar, log b; the learned one before its soft bound

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.learned = scale is None
        log_scale = torch.tensor(math.log(START_SIGMA / math.sqrt(2) if scale is None else scale))
        self.log_scale = nn.Parameter(log_scale) if self.learned else nn.Buffer(log_scale)

    def _log_scale(self) -> Tensor:
        return soft_bound(self.log_scale, LOG_SIGMA_BOUND) if self.learned else self.log_scale

    @property
    def sigma(self) -> Tensor:
        return math.sqrt(2) * torch.exp(self._log_scale()).detach()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        error = F.l1_loss(output, x, reduction="none").flatten(1).sum(1)  # [B]
        return -error * torch.exp(-self._log_scale()) - x[0].numel() * (self._log_scale() + math.log(2))

    def smoothed_log_prob(self, x: Tensor, output: Tensor, spread: Callable[[], Tensor]) -> Tensor:
        width = spread()
        ratio = (output - x) / (math.sqrt(2) * width)
        excess = ratio * torch.erf(ratio) + torch.exp(-ratio.square()) / math.sqrt(math.pi) - ratio.abs()
        more = math.sqrt(2) * (width * excess).flatten(1).sum(1)  # E|r + spread e| - |r|
        return self.log_prob(x, output) - more * torch.exp(-self._log_scale())

    def mean(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)


class ContinuousBernoulli(Likelihood):
    """Dequantised pixels with density p(x) = exp(x l) l / (exp(l) - 1) on [0, 1], l the output.

    Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), written with the logit l of their lambda, where
    log p = x l - log((exp(l) - 1) / l) and the mean is 1 / (1 - exp(-l)) - 1 / l, or 1/2 at l = 0.
    """

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return (x * output - log_mean_exp_line(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        near_zero = output.abs() < 0.25
        far = torch.where(near_zero, 1.0, output)
        exact = -1 / torch.expm1(-far) - 1 / far
        squared = output.square()
        return torch.where(near_zero, 0.5 + output / 12 * (1 - squared / 60 * (1 - squared / 42)), exact)


class DiscretisedLogistic(Likelihood):
    """Exact 8-bit pixels: a logistic(output, scale) integrated over each of 256 bins, the outer two taking the tails.

    Kingma et al. 2016 (arXiv:1606.04934), with one learned scale, or one a pixel. The output is not confined to
    [0, 1]: a logistic about a mean below 0 gives a black pixel nearly all its mass. With a and b the standardised
    upper and lower edge of a bin, log(sigmoid(a) - sigmoid(b)) = -softplus(-a) - softplus(b) + log(1 - exp(b - a)),
    exact and stable however far the pixel lies from the output. The mean is that of the logistic clamped to [0, 1],
    within half a grey level of the mean over the 256 values.
    """

    uses_noise = False
    measure = "discrete"

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        """`shape`: of the scales, () for one, or (C, H, W)."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.full(shape, math.log(START_SIGMA * math.sqrt(3) / math.pi)))

    @property
    def scale(self) -> Tensor:
        """Of the logistic, pixels on [0, 1]: one, or [C, H, W]."""
        return torch.exp(soft_bound(self.log_scale, LOG_SIGMA_BOUND))

    @property
    def sigma(self) -> Tensor:
        return self.scale.detach().mean() * (math.pi / math.sqrt(3))  # of the logistic, before discretisation

    def observe(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        return pixels / 255

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        scale, half_bin = self.scale, 0.5 / 255
        above = F.softplus((output - x - half_bin) / scale)  # -log P(X below the upper edge)
        below = F.softplus((x - half_bin - output) / scale)  # -log P(X above the lower edge)
        log_width = torch.log(-torch.expm1(-2 * half_bin / scale))  # of the scales' shape
        black, white = x < half_bin, x > 1 - half_bin
        inner = above + below - log_width
        return -torch.where(black, above, torch.where(white, below, inner)).flatten(1).sum(1)

    def start(self, mean: Tensor) -> Tensor:
        return mean

    def mean(self, output: Tensor) -> Tensor:
        scale = self.scale
        return scale * (F.softplus(output / scale) - F.softplus((output - 1) / scale))


def log_mean_exp_line(slope: Tensor) -> Tensor:
    """log of the integral of exp(slope x) over [0, 1], log((exp(l) - 1) / l), elementwise; its value at 0 is 0.

    |l| < 1/4: the Taylor series of l/2 + log(sinh(l/2) / (l/2)), exact to float64; elsewhere
    max(l, 0) + log((1 - exp(-|l|)) / |l|), which never overflows.
    """
    near_zero = slope.abs() < 0.25
    squared = torch.where(near_zero, slope, 0.0).square()
    series = squared / 24 * (1 - squared / 120 * (1 - squared / 63 * (1 - squared * (3 / 160))))
    size = torch.where(near_zero, 1.0, slope.abs())
    exact = slope.relu() + torch.log(-torch.expm1(-size) / size)
    return torch.where(near_zero, slope / 2 + series, exact)
