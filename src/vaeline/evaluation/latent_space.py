"""What a trained model's latents are worth: the section `latent` of reports/metrics.json.

A function of the model, the data and a seed. Nats, each number with the count of images behind it; "_se" is the
standard error of a mean over images.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core import latent_metrics
from vaeline.core.batches import batch_ranges, observe, pixel_batches
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.estimators import per_image_noise, per_image_uniform
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.core.priors import StandardNormal
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import disentanglement, probes

Pixels = npt.NDArray[np.uint8]  # [N, C, H, W]
Report = dict[str, Any]

SUBSET_BYTES = 2**30  # of pixels held
DENSITIES = 2**30  # evaluated to take the KL apart
CODES = 2**26  # numbers in the posterior means held
KERNEL_POINTS, PERMUTATIONS = 1000, 200  # of the MMD
FEWEST_FOR_FACTORS = 2 * disentanglement.BINS
TRAINING_IMAGES = 10_000  # that probes learn from
PROBE_PIXELS = 2**24  # that they hold as numbers


def latent_report(model: VAE, train: Split, validation: Split, test: Split, *, images: int, seed: int) -> Report:
    """Measure the latents of `images` random test images, at least 2, or of all if there are fewer.

    An autoencoder has no posterior: only `probes` and `frechet_cnn_features` are measured of it. These need labels.
    """
    most = max(2, SUBSET_BYTES // math.prod(model.shape))
    images = min(images, most, max(2, CODES // model.latent_dim))
    test = test.take(images, seed)
    report: Report = {"images": len(test)}
    posterior = encode(model, test.pixels, seed)
    if not model.deterministic:
        z = posterior.rsample(per_image_noise(seed, range(len(test)), (model.latent_dim,)))
        report |= aggregate_report(model, posterior, z)
        report["mmd"] = mmd_report(model, z, seed)
        if test.factors is not None and len(test) >= FEWEST_FOR_FACTORS:
            report["mig"] = disentanglement.mutual_information_gap(z.double().numpy(), test.factors)
            report["dci"] = disentanglement.dci(posterior.mean.double().numpy(), test.factors, seed)
    if train.labels is not None and test.labels is not None:
        train = train.take(min(TRAINING_IMAGES, most), seed)
        report["probes"] = probe_report(model, train, test, posterior.mean, seed)
        report["frechet_cnn_features"] = frechet_report(model, train, validation.take(images, seed), test, seed)
    return report


def aggregate_report(model: VAE, posterior: DiagonalGaussian, z: Tensor) -> Report:
    """The KL taken apart, see `latent_metrics.Decomposition`, at one sample z an image, [N, Z].

    "saturation" is the share of images at which the limit "log_images" and not the model decides: near 1 the mutual
    information and the total correlation are lower bounds, the marginal KL an upper one. "mutual_information_upper"
    is the least upper bound known, the rate or the estimate without the image itself. A prior that does not factorise
    has no "dimension_wise_kl". At most DENSITIES / Z of the N^2 pairs of images are looked at.
    """
    count = min(len(z), max(2, math.isqrt(DENSITIES // model.latent_dim)))
    z, posterior = z[:count], DiagonalGaussian(posterior.mean[:count], posterior.log_variance[:count])
    with torch.no_grad():
        log_prior = model.prior.log_prob(z.to(model.device)).cpu()
    parts = latent_metrics.decompose(posterior, z, log_prior)
    report = {
        "decomposed_images": count,
        "log_images": math.log(count),
        "saturation": float(parts.saturation.double().mean()),
        **Measured.of(parts.rate).numbers("rate"),
        **Measured.of(parts.mutual_information).numbers("mutual_information"),
        "mutual_information_upper": float(torch.minimum(parts.mutual_information_upper.mean(), parts.rate.mean())),
        **Measured.of(parts.marginal_kl).numbers("marginal_kl"),
        **Measured.of(parts.total_correlation).numbers("total_correlation"),
    }
    if count > 10 * model.latent_dim:  # else the covariance is that of these images
        report["total_correlation_gaussian"] = latent_metrics.gaussian_total_correlation(z)
    if isinstance(model.prior, StandardNormal):
        of_dimensions = parts.marginals - StandardNormal().log_prob(z.double().unsqueeze(-1))  # [N, Z]
        report |= Measured.of(of_dimensions.sum(1)).numbers("dimension_wise_kl")
    return report


@torch.no_grad()
def mmd_report(model: VAE, z: Tensor, seed: int) -> Report:
    """MMD^2 of KERNEL_POINTS of the samples z [N, Z] to as many of the prior; see `maximum_mean_discrepancy`."""
    generator = torch.Generator().manual_seed(seed)
    z = z[:KERNEL_POINTS]
    prior = model.prior.sample(torch.randn(z.shape, generator=generator).to(model.device)).cpu()
    found = latent_metrics.maximum_mean_discrepancy(z, prior, permutations=PERMUTATIONS, generator=generator)
    return {
        "squared": found.value,
        "null_deviation": found.null_deviation,
        "p_value": found.p_value,
        "bandwidth": found.bandwidth,
        "points": len(z),
    }


def probe_report(model: VAE, train: Split, test: Split, test_means: Tensor, seed: int) -> Report:
    """Accuracies on test images of k-NN and of a linear probe, learnt from training images.

    From posterior means, from the pixels themselves, and from as many principal components as there are latent
    dimensions. test_means [N, Z] belong to `test`. At most PROBE_PIXELS numbers a split are looked at.
    """
    most = max(2, PROBE_PIXELS // math.prod(model.shape))
    train, test = train[:most], test[:most]
    pixels, test_pixels = _pixels(model, train.pixels, seed), _pixels(model, test.pixels, seed)
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

    "validation_images" are as real as test images: no model is expected below them. Reconstructions are those of the
    posterior means; decoded images are the expected ones, except for binary pixels, which are drawn.
    """
    count = min(len(test), len(validation))
    images = torch.cat([probes.shrink(x.cpu()) for x in _observed(model, train.pixels, seed)])
    with torch.enable_grad():
        classifier = probes.train_classifier(images, torch.from_numpy(train.labels), seed)

    def features(batches: Iterator[Tensor]) -> Tensor:
        return torch.cat([classifier.features(probes.shrink(x.cpu())) for x in batches])

    real = features(_observed(model, test.pixels[:count], seed))
    means = encode(model, test.pixels[:count], seed).mean
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    drawn = model.prior.sample(noise.to(model.device)).cpu()
    right = classifier.head(real).argmax(1) == torch.from_numpy(test.labels)[:count]
    return {
        "images": count,
        "reconstructions": probes.frechet_distance(features(_decoded(model, means, seed)), real),
        "prior_samples": probes.frechet_distance(features(_decoded(model, drawn, seed)), real),
        "validation_images": probes.frechet_distance(features(_observed(model, validation.pixels[:count], seed)), real),
        "classifier_accuracy": float(right.double().mean()),
    }


@torch.no_grad()
def encode(model: VAE, pixels: Pixels, seed: int) -> DiagonalGaussian:
    """q(z|x) of every image, on the CPU: mean and log variance [N, Z]."""
    parts = [model.encode(x) for x in _observed(model, pixels, seed)]
    means, log_variances = [part.mean.cpu() for part in parts], [part.log_variance.cpu() for part in parts]
    return DiagonalGaussian(torch.cat(means), torch.cat(log_variances))


def _observed(model: VAE, pixels: Pixels, seed: int) -> Iterator[Tensor]:
    """Images as the likelihood sees them, on the model's device, in batches."""
    for indices, batch in pixel_batches(model, pixels):
        yield observe(model, batch, indices, seed, binarise=True)


def _decoded(model: VAE, z: Tensor, seed: int) -> Iterator[Tensor]:
    """Images of z [N, Z] in batches: drawn if pixels are binary, expected ones else."""
    for where in batch_ranges(model, len(z)):
        output = model.decode(z[where.start : where.stop].to(model.device))
        if model.likelihood.measure == "binary":
            yield model.likelihood.sample(output, per_image_uniform(seed, where, model.shape).to(output.device))
        else:
            yield model.likelihood.mean(output)


def _pixels(model: VAE, pixels: Pixels, seed: int) -> Tensor:
    """[N, C H W] on the CPU."""
    return torch.cat([x.cpu().flatten(1) for x in _observed(model, pixels, seed)])
