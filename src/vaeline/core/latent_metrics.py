"""The aggregate posterior q(z) = (1/N) sum_n q(z|x_n): what it knows of the images, how far it is from the prior.

All in nats, all from one sample z_n ~ q(z|x_n) an image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian

DENSITIES_AT_ONCE = 2**17  # a megabyte of float64: stays in the cache
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Decomposition:
    """Log densities at z_n ~ q(z|x_n), whose differences are the KL to the prior, taken apart; float64.

    The ELBO's KL, here `rate`, is mutual information + marginal KL (Hoffman & Johnson 2016, "ELBO surgery"); where
    the prior factorises, marginal KL = total correlation + sum of the dimensions' KLs (Chen et al. 2018,
    arXiv:1802.04942, equation 2). Both hold exactly, for every image. Properties are [N], one number an image, whose
    mean estimates the quantity.
    """

    posterior: Tensor  # [N] log q(z_n|x_n)
    aggregate: Tensor  # [N] log (1/N) sum_m q(z_n|x_m)
    others: Tensor  # [N] log (1/(N-1)) sum_{m != n} q(z_n|x_m)
    marginals: Tensor  # [N, Z] log (1/N) sum_m q(z_nd|x_md)
    prior: Tensor  # [N] log p(z_n)

    @property
    def rate(self) -> Tensor:
        """log q(z|x) - log p(z), whose mean is the ELBO's KL."""
        return self.posterior - self.prior

    @property
    def mutual_information(self) -> Tensor:
        """log q(z|x) - log q(z): what z tells of which of the N images it encodes; never above log N.

        As an estimate for all images that might have been, a lower bound (Poole et al. 2019, arXiv:1905.06922).
        """
        return self.posterior - self.aggregate

    @property
    def mutual_information_upper(self) -> Tensor:
        """The same with the image itself left out of q(z): an upper bound in expectation (Poole et al. 2019)."""
        return self.posterior - self.others

    @property
    def marginal_kl(self) -> Tensor:
        """log q(z) - log p(z), whose mean is KL(q(z) || p(z))."""
        return self.aggregate - self.prior

    @property
    def total_correlation(self) -> Tensor:
        """log q(z) - sum_d log q(z_d), whose mean is KL(q(z) || prod_d q(z_d))."""
        return self.aggregate - self.marginals.sum(1)

    @property
    def saturation(self) -> Tensor:
        """Does the image's own posterior hold more than half of q(z) at its sample? True where log N is the limit.

        There more images would raise the mutual information and the total correlation, and lower the marginal KL.
        """
        return self.mutual_information > math.log(len(self.posterior) / 2)


@torch.no_grad()
def decompose(posterior: DiagonalGaussian, z: Tensor, log_prior: Tensor) -> Decomposition:
    """Evaluate each sample under each image's posterior: q(z|x) of N images, z [N, Z], log p(z) [N]; N >= 2.

    N^2 Z densities are computed and DENSITIES_AT_ONCE kept (N at least).
    """
    count, dimensions = z.shape
    wide = z.double().T.contiguous()  # [Z, N]
    mean, log_variance = posterior.mean.double().T.contiguous(), posterior.log_variance.double().T.contiguous()
    precision, constant = torch.exp(-0.5 * log_variance), -0.5 * (log_variance + math.log(2 * math.pi))
    own, others, marginals = wide.new_empty(count), wide.new_empty(count), wide.new_empty(count, dimensions)
    rows = max(1, DENSITIES_AT_ONCE // count)
    for start in range(0, count, rows):
        chunk = slice(start, min(start + rows, count))
        joint = wide.new_zeros(chunk.stop - start, count)
        for d in range(dimensions):
            scaled = wide[d, chunk, None].sub(mean[d]).mul_(precision[d])
            one = torch.addcmul(constant[d], scaled, scaled, value=-0.5)  # [rows, N] log q(z_nd|x_md)
            marginals[chunk, d] = _log_sum_exp(one)
            joint += one
        diagonal = joint.diagonal(start)
        own[chunk] = diagonal
        diagonal.fill_(-math.inf)
        others[chunk] = _log_sum_exp(joint)
    log_count = math.log(count)
    return Decomposition(
        posterior=own,
        aggregate=torch.logaddexp(own, others) - log_count,
        others=others - math.log(count - 1),
        marginals=marginals - log_count,
        prior=log_prior.double(),
    )


def _log_sum_exp(values: Tensor) -> Tensor:
    """Over the columns, [A, B] -> [A]. Terms below exp(-100) of the largest count as that: exp is slow on them."""
    largest = values.amax(1, keepdim=True)
    return (values - largest).clamp_(min=-100).exp_().sum(1).log_().add_(largest.squeeze(1))


def gaussian_total_correlation(z: Tensor) -> float:
    """The total correlation of the Gaussian with the covariance of z [N, Z]: -log det(correlations) / 2, in nats.

    Sees linear dependence alone, but knows no limit of log N. Dimensions that never move are left out.
    """
    moving = z[:, z.double().var(0) > 0].double()
    if moving.shape[1] < 2:
        return 0.0
    return -0.5 * float(torch.linalg.slogdet(torch.corrcoef(moving.T)).logabsdet)


@dataclass(frozen=True)
class Discrepancy:
    """An MMD^2, and what it would be were both samples drawn from one distribution."""

    value: float
    null: Tensor  # [P], by permutation
    bandwidth: float

    @property
    def null_deviation(self) -> float:
        """The standard deviation under the null hypothesis; its mean is 0."""
        return float(self.null.std())

    @property
    def p_value(self) -> float:
        """How often, under the null hypothesis, as large or larger: (1 + hits) / (1 + P)."""
        return (1 + int((self.null >= self.value).sum())) / (1 + len(self.null))


@torch.no_grad()
def maximum_mean_discrepancy(x: Tensor, y: Tensor, *, permutations: int, generator: torch.Generator) -> Discrepancy:
    """Unbiased MMD^2 of x and y, [N, Z] each (Gretton et al. 2012, equation 3), and its permutation distribution.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), which may come out negative. The kernel is the mean over
    s in KERNEL_SCALES of the inverse multiquadrics s b / (s b + |u - v|^2), on (0, 1]; the bandwidth b is the mean
    squared distance of two points of y: 2 Z for a standard normal prior, as in WAEs (Tolstikhin et al. 2018,
    arXiv:1711.01558). Memory holds a few [2 N, 2 N] matrices of float64.
    """
    count = len(x)
    pooled = torch.cat([x, y]).double()
    bandwidth = 2 * float(pooled[count:].var(0).sum())
    kernel = inverse_multiquadrics(pooled, bandwidth).fill_diagonal_(0)
    signs = pooled.new_ones(permutations + 1, 2 * count)  # +1: counts as x, -1: counts as y; row 0 as it is
    signs[0, count:] = -1
    ranks = torch.rand(permutations, 2 * count, generator=generator).argsort(1)
    signs[1:][ranks >= count] = -1
    agreement = ((signs @ kernel) * signs).sum(1)  # within - across
    within, across = 0.5 * (kernel.sum() + agreement), 0.5 * (kernel.sum() - agreement)
    values = within / (count * (count - 1)) - across / count**2
    return Discrepancy(float(values[0]), values[1:], bandwidth)


def inverse_multiquadrics(points: Tensor, bandwidth: float) -> Tensor:
    """The kernel of `maximum_mean_discrepancy` between all pairs: [N, Z] -> [N, N]."""
    squares = torch.cdist(points, points).square()
    kernel = torch.zeros_like(squares)
    for scale in KERNEL_SCALES:
        kernel += scale * bandwidth / (scale * bandwidth + squares)
    return kernel / len(KERNEL_SCALES)
