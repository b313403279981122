"""What a trained model's latents are worth: the section `latent` of reports/metrics.json, in nats.

A function of the model, the data and a seed; "_se" is the standard error of a mean over images. The aggregate
posterior is q(z) = (1/N) sum_n q(z|x_n).
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.estimators import batch_ranges, encoded, observe, per_image_noise, per_image_uniform, pixel_batches
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE, decoded
from vaeline.core.priors import StandardNormal
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import probes
from vaeline.io.npy import Pixels

Report = dict[str, Any]

SUBSET_BYTES = 2**30  # of pixels held
DENSITIES = 2**30  # evaluated to take the KL apart
CODES = 2**26  # numbers in the posterior means held
KERNEL_POINTS, PERMUTATIONS = 1000, 200  # of the MMD
FEWEST_FOR_FACTORS = 2 * probes.BINS
TRAINING_IMAGES = 10_000  # that probes learn from
DENSITIES_AT_ONCE = 2**17  # a megabyte of float64: stays in the cache
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@torch.no_grad()
def latent_report(model: VAE, train: Split, validation: Split, test: Split, *, images: int, seed: int) -> Report:
    """Measure the latents of `images` random test images, at least 2, or of all if there are fewer.

    An autoencoder has no posterior: only `probes` and `frechet_cnn_features` are measured of it. These need labels.
    "mmd" is that of KERNEL_POINTS samples of the posteriors to as many of the prior.
    """
    most = max(2, SUBSET_BYTES // math.prod(model.shape))
    images = min(images, most, max(2, CODES // model.latent_dim))
    test = test.take(images, seed)
    report: Report = {"images": len(test)}
    posterior = encode(model, test.pixels, seed)
    if not model.deterministic:
        z = posterior.rsample(per_image_noise(seed, range(len(test)), (model.latent_dim,)))
        report |= aggregate_report(model, posterior, z)
        generator, points = torch.Generator().manual_seed(seed), z[:KERNEL_POINTS]
        prior = model.prior.sample(torch.randn(points.shape, generator=generator).to(model.device)).cpu()
        mmd = maximum_mean_discrepancy(points, prior, permutations=PERMUTATIONS, generator=generator)
        report["mmd"] = mmd | {"points": len(points)}
        if test.factors is not None and len(test) >= FEWEST_FOR_FACTORS:
            report["mig"] = probes.mutual_information_gap(z.double().numpy(), test.factors)
            report["dci"] = probes.dci(posterior.mean.double().numpy(), test.factors, seed)
    if train.labels is not None and test.labels is not None:
        train = train.take(min(TRAINING_IMAGES, most), seed)
        report["probes"] = probe_report(model, train, test, posterior.mean, seed)
        report["frechet_cnn_features"] = frechet_report(model, train, validation.take(images, seed), test, seed)
    return report


def aggregate_report(model: VAE, posterior: DiagonalGaussian, z: Tensor) -> Report:
    """The KL taken apart, see `decompose`, at one sample z an image, [N, Z].

    "saturation" is the share of images at which the limit "log_images" and not the model decides: near 1 the mutual
    information is a lower bound, the total correlation and the marginal KL are upper ones. A prior that does not
    factorise has no "dimension_wise_kl". At most DENSITIES / Z of the N^2 pairs of images are looked at.
    """
    count = min(len(z), max(2, math.isqrt(DENSITIES // model.latent_dim)))
    z, posterior = z[:count], posterior[:count]
    parts = decompose(posterior, z, model.prior.log_prob(z.to(model.device)).cpu())
    report = {
        "decomposed_images": count,
        "log_images": math.log(count),
        "saturation": float(parts["saturation"].mean()),
        **Measured.of(parts["rate"]).numbers("rate"),
        **Measured.of(parts["mutual_information"]).numbers("mutual_information"),
        "mutual_information_upper": min(float(parts[name].mean()) for name in ("mutual_information_upper", "rate")),
        **Measured.of(parts["marginal_kl"]).numbers("marginal_kl"),
        **Measured.of(parts["total_correlation"]).numbers("total_correlation"),
    }
    if count > 10 * model.latent_dim:  # else the covariance is that of these images
        report["total_correlation_gaussian"] = gaussian_total_correlation(z)
    if isinstance(model.prior, StandardNormal):
        of_dimensions = parts["marginals"] - StandardNormal().log_prob(z.double().unsqueeze(-1))  # [N, Z]
        report |= Measured.of(of_dimensions.sum(1)).numbers("dimension_wise_kl")
    return report


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
      the mutual information, and lower the total correlation and the marginal KL
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


def probe_report(model: VAE, train: Split, test: Split, test_means: Tensor, seed: int) -> Report:
    """Accuracies of k-NN and a linear probe on posterior means (test_means [N, Z]), pixels and principal components."""
    most = max(2, probes.PIXELS // math.prod(model.shape))
    train, test = train[:most], test[:most]
    pixels, test_pixels = (
        torch.cat([x.cpu().flatten(1) for x in _observed(model, split.pixels, seed)]) for split in (train, test)
    )
    mean, axes = probes.principal_components(pixels, model.latent_dim)
    features = {
        "posterior_means": (encode(model, train.pixels, seed).mean, test_means[: len(test)]),
        "pixels": (pixels, test_pixels),
        "pca": ((pixels - mean) @ axes, (test_pixels - mean) @ axes),
    }
    labels, truth = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    report: Report = {"train_images": len(train), "test_images": len(test), "neighbours": probes.NEIGHBOURS}
    for name, predict in (("knn_accuracy", probes.knn_predict), ("linear_accuracy", probes.linear_predict)):
        report[name] = {}
        for of, (known, asked) in features.items():
            report[name] |= Measured.of(predict(known, labels, asked) == truth).numbers(of)
    return report


@torch.no_grad()
def frechet_report(model: VAE, train: Split, validation: Split, test: Split, seed: int) -> Report:
    """Frechet distances to test images on the features of a classifier trained here, on training images.

    "validation_images" are as real as test images: no model is expected below them.
    """
    count = min(len(test), len(validation))
    images = torch.cat([probes.shrink(x.cpu()) for x in _observed(model, train.pixels, seed)])
    classifier = probes.train_classifier(images, torch.from_numpy(train.labels), seed)
    features = partial(probes.classifier_features, classifier)
    real = features(_observed(model, test.pixels[:count], seed))
    means = encode(model, test.pixels[:count], seed).mean
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    drawn = model.prior.sample(noise.to(model.device)).cpu()
    held = {
        "reconstructions": _decoded(model, means, seed),
        "prior_samples": _decoded(model, drawn, seed),
        "validation_images": _observed(model, validation.pixels[:count], seed),
    }
    right = classifier[-1](real).argmax(1) == torch.from_numpy(test.labels)[:count]
    return {
        "images": count,
        **{name: probes.frechet_distance(features(images), real) for name, images in held.items()},
        "classifier_accuracy": float(right.double().mean()),
    }


@torch.no_grad()
def encode(model: VAE, pixels: Pixels, seed: int) -> DiagonalGaussian:
    """q(z|x) of every image, on the CPU: mean and log variance [N, Z]."""
    return encoded(model, _observed(model, pixels, seed), len(pixels))


def _observed(model: VAE, pixels: Pixels, seed: int) -> Iterator[Tensor]:
    """Images as the likelihood sees them, on the model's device, in batches."""
    return (observe(model, batch, part, seed, binarise=True) for part, batch in pixel_batches(model, pixels))


def _decoded(model: VAE, z: Tensor, seed: int) -> Iterator[Tensor]:
    """Images of z [N, Z] in batches: drawn if pixels are binary, expected ones else."""
    for where in batch_ranges(model, len(z)):
        images = decoded(model, z[where.start : where.stop].to(model.device))
        if model.likelihood.measure == "binary":
            images = (per_image_uniform(seed, where, model.shape).to(images.device) < images).to(images.dtype)
        yield images
