"""The diagonal Gaussian: log-density, reparameterised samples, divergence from the standard normal."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_VARIANCE_BOUND = 20.0  # exp(-20): far inside float32, with room for squares and sums
LARGEST_LOG_VARIANCE = 2.0  # exp(2): to be wider than the prior gains nothing, and an odd image would cost exp(20) nats

Index = slice | Tensor | tuple[slice, slice]


def soft_bound(raw: Tensor, bound: float) -> Tensor:
    """bound * tanh(raw / bound), elementwise: slope 1 at zero, always within [-bound, bound]; NaN stays NaN."""
    return bound * torch.tanh(raw / bound)


def bounded_log_variance(raw: Tensor) -> Tensor:
    """A log variance within [-20, 2], of slope 1 at 0: its exponential neither overflows nor vanishes."""
    return torch.where(raw > 0, soft_bound(raw, LARGEST_LOG_VARIANCE), soft_bound(raw, LOG_VARIANCE_BOUND))


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_variance))) over the last axis."""

    mean: Tensor  # [B, Z]
    log_variance: Tensor  # [B, Z]

    def __getitem__(self, part: Index) -> "DiagonalGaussian":
        """Those of some images, or of some dimensions."""
        return DiagonalGaussian(self.mean[part], self.log_variance[part])

    def rsample(self, noise: Tensor) -> Tensor:
        """Samples mean + exp(log_variance / 2) * noise (Kingma & Welling 2014), of the shape of noise, [..., B, Z]."""
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, variance) in nats, summed over dimensions: [..., B, Z] -> [..., B]."""
        squares = (z - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi)).sum(-1)

    def kl_to_standard_normal(self) -> Tensor:
        """KL(q || N(0, I)) = (mean^2 + variance - 1 - log variance) / 2 in nats, for each dimension: [B, Z].

        Kingma & Welling 2014, appendix B; expm1 keeps it accurate, and not negative, close to the prior.
        """
        return 0.5 * torch.addcmul(torch.expm1(self.log_variance) - self.log_variance, self.mean, self.mean)
