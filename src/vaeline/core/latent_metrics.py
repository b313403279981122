"""The aggregate posterior q(z) = (1/N) sum_n q(z|x_n) of the images, and how far it is from the prior; in nats."""

import math

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian

DENSITIES_AT_ONCE = 2**17  # a megabyte of float64: stays in the cache
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@torch.no_grad()
def decompose(posterior: DiagonalGaussian, z: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """The KL to the prior taken apart, by q(z|x) of N images, z_n ~ q(z|x_n) [N, Z], log p(z_n) [N]; N >= 2.

    The ELBO's KL, here the rate, is mutual information + marginal KL (Hoffman & Johnson 2016, "ELBO surgery"); where
    the prior factorises, marginal KL = total correlation + sum of the dimensions' KLs (Chen et al. 2018,
    arXiv:1802.04942, equation 2). Both hold exactly, for every image. Returns float64 [N], one number an image, whose
    mean estimates the quantity:

    - rate: log q(z|x) - log p(z); marginal_kl: log q(z) - log p(z); total_correlation: log q(z) - sum_d log q(z_d)
    - mutual_information: log q(z|x) - log q(z), never above log N, so a lower bound for more images (Poole et al. 2019,
      arXiv:1905.06922); mutual_information_upper: an upper one, with the image itself left out of q(z)
    - saturation: 1 where the image's own posterior holds more than half of q(z) at its sample: more images would raise
      the mutual information and the total correlation, and lower the marginal KL
    - marginals [N, Z]: log q(z_d)

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
    log_prior, marginals = log_prior.double(), marginals - math.log(count)
    aggregate = torch.logaddexp(own, others) - math.log(count)  # log q(z_n)
    return {
        "rate": own - log_prior,
        "mutual_information": own - aggregate,
        "mutual_information_upper": own - (others - math.log(count - 1)),
        "marginal_kl": aggregate - log_prior,
        "total_correlation": aggregate - marginals.sum(1),
        "saturation": (own - aggregate > math.log(count / 2)).double(),
        "marginals": marginals,
    }


def _log_sum_exp(values: Tensor) -> Tensor:
    """Over the columns, [A, B] -> [A]. Terms below exp(-100) of the largest count as that: exp is slow on them."""
    largest = values.amax(1, keepdim=True)
    return (values - largest).clamp_(min=-100).exp_().sum(1).log_().add_(largest.squeeze(1))


def gaussian_total_correlation(z: Tensor) -> float:
    """-log det(correlations of z [N, Z]) / 2: sees linear dependence alone, but knows no limit of log N."""
    moving = z[:, z.double().var(0) > 0].double()
    if moving.shape[1] < 2:
        return 0.0
    return -0.5 * float(torch.linalg.slogdet(torch.corrcoef(moving.T)).logabsdet)


@torch.no_grad()
def maximum_mean_discrepancy(
    x: Tensor, y: Tensor, *, permutations: int, generator: torch.Generator
) -> dict[str, float]:
    """Unbiased MMD^2 of x and y, [N, Z] each (Gretton et al. 2012, equation 3), and what it is under the null.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), "squared", which may come out negative. The kernel is the mean over
    s in KERNEL_SCALES of the inverse multiquadrics s b / (s b + |u - v|^2), on (0, 1]; the "bandwidth" b is the mean
    squared distance of two points of y: 2 Z for a standard normal prior, as in WAEs (Tolstikhin et al. 2018,
    arXiv:1711.01558). By P permutations, as if both were of one distribution: the "null_deviation" about 0, and the
    "p_value", how often it is as large or larger, (1 + hits) / (1 + P). Memory: a few [2 N, 2 N] matrices of float64.
    """
    count = len(x)
    pooled = torch.cat([x, y]).double()
    bandwidth = 2 * float(pooled[count:].var(0).sum())
    squares = torch.cdist(pooled, pooled).square()
    kernel = torch.zeros_like(squares)
    for scale in KERNEL_SCALES:
        kernel += scale * bandwidth / (scale * bandwidth + squares)
    kernel = (kernel / len(KERNEL_SCALES)).fill_diagonal_(0)
    signs = pooled.new_ones(permutations + 1, 2 * count)  # +1: counts as x, -1: counts as y; row 0 as it is
    signs[0, count:] = -1
    ranks = torch.rand(permutations, 2 * count, generator=generator).argsort(1)
    signs[1:][ranks >= count] = -1
    agreement = ((signs @ kernel) * signs).sum(1)  # within - across
    within, across = 0.5 * (kernel.sum() + agreement), 0.5 * (kernel.sum() - agreement)
    values = within / (count * (count - 1)) - across / count**2
    hits = int((values[1:] >= float(values[0])).sum())
    return {
        "squared": float(values[0]),
        "null_deviation": float(values[1:].std()),
        "p_value": (1 + hits) / (1 + permutations),
        "bandwidth": bandwidth,
    }
