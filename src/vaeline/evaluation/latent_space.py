"""What a trained model's latents are worth: the section `latent` of reports/metrics.json, in nats.

A function of the model, the data and a seed; "_se" is the standard error of a mean over images.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core import latent_metrics
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.estimators import batch_ranges, observe, per_image_noise, per_image_uniform, pixel_batches
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.core.priors import StandardNormal
from vaeline.core.sampling import decoded
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import probes

Pixels = npt.NDArray[np.uint8]  # [N, C, H, W]
Report = dict[str, Any]

SUBSET_BYTES = 2**30  # of pixels held
DENSITIES = 2**30  # evaluated to take the KL apart
CODES = 2**26  # numbers in the posterior means held
KERNEL_POINTS, PERMUTATIONS = 1000, 200  # of the MMD
FEWEST_FOR_FACTORS = 2 * probes.BINS
TRAINING_IMAGES = 10_000  # that probes learn from
PROBE_PIXELS = 2**24  # that they hold as numbers


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
        report["mmd"] = latent_metrics.maximum_mean_discrepancy(
            points, prior, permutations=PERMUTATIONS, generator=generator
        ) | {"points": len(points)}
        if test.factors is not None and len(test) >= FEWEST_FOR_FACTORS:
            report["mig"] = probes.mutual_information_gap(z.double().numpy(), test.factors)
            report["dci"] = probes.dci(posterior.mean.double().numpy(), test.factors, seed)
    if train.labels is not None and test.labels is not None:
        train = train.take(min(TRAINING_IMAGES, most), seed)
        report["probes"] = probe_report(model, train, test, posterior.mean, seed)
        report["frechet_cnn_features"] = frechet_report(model, train, validation.take(images, seed), test, seed)
    return report


def aggregate_report(model: VAE, posterior: DiagonalGaussian, z: Tensor) -> Report:
    """The KL taken apart, see `latent_metrics.decompose`, at one sample z an image, [N, Z].

    "saturation" is the share of images at which the limit "log_images" and not the model decides: near 1 the mutual
    information is a lower bound, the total correlation and the marginal KL are upper ones. A prior that does not
    factorise has no "dimension_wise_kl". At most DENSITIES / Z of the N^2 pairs of images are looked at.
    """
    count = min(len(z), max(2, math.isqrt(DENSITIES // model.latent_dim)))
    z, posterior = z[:count], DiagonalGaussian(posterior.mean[:count], posterior.log_variance[:count])
    parts = latent_metrics.decompose(posterior, z, model.prior.log_prob(z.to(model.device)).cpu())
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
        report["total_correlation_gaussian"] = latent_metrics.gaussian_total_correlation(z)
    if isinstance(model.prior, StandardNormal):
        of_dimensions = parts["marginals"] - StandardNormal().log_prob(z.double().unsqueeze(-1))  # [N, Z]
        report |= Measured.of(of_dimensions.sum(1)).numbers("dimension_wise_kl")
    return report


def probe_report(model: VAE, train: Split, test: Split, test_means: Tensor, seed: int) -> Report:
    """Accuracies on test images of k-NN and of a linear probe, learnt from at most PROBE_PIXELS training pixels.

    From posterior means (test_means [N, Z]), from the pixels themselves, and from as many principal components.
    """
    most = max(2, PROBE_PIXELS // math.prod(model.shape))
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

    def features(batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([classifier[:-1](probes.shrink(x.cpu())) for x in batches])

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
    parts = [model.encode(x) for x in _observed(model, pixels, seed)]
    means, log_variances = [part.mean.cpu() for part in parts], [part.log_variance.cpu() for part in parts]
    return DiagonalGaussian(torch.cat(means), torch.cat(log_variances))


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
