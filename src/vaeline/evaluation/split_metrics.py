"""How good a trained model is on a split: every image exactly once, in nats per image, with standard errors.

Each image's numbers are computed by themselves and summed in float64; a batch's size changes only the rounding. A
number that is not finite is an error, never left out. Noise depends on (seed, image) alone.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core import estimators, metrics, sampling
from vaeline.core.batches import BATCH, PIXELS_AT_ONCE, observe, pixel_batches
from vaeline.core.likelihoods import Measure
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.core.units import bits_per_dimension
from vaeline.errors import UserError

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # [N, C, H, W]
Values = npt.NDArray[np.float64]  # [N], one an image

FINEST_SQUARED_ERROR = 1 / (12 * 256**2)  # of rounding to 8 bits; no reconstruction can be seen to be nearer
REPORT_SECONDS = 10.0

PROTOCOLS: dict[Measure, str] = {
    "binary": "binary pixels, drawn once",
    "density": "uniformly dequantised 8-bit pixels, x = (u8 + u) / 256, u ~ U[0, 1)",
    "discrete": "exact 8-bit pixels",
}


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model."""

    report: dict[str, Any]  # the content of reports/metrics.json
    kl_per_dimension: list[tuple[int, float]]  # (latent dimension, mean KL in nats), where the KL has parts


@dataclass(frozen=True)
class Bound:
    """The ELBO's terms of each image of a split, in nats."""

    reconstruction: Values  # [N]
    kl: Values  # [N]
    kl_per_dimension: Values  # [Z], mean over the images; [1] under a prior that does not factorise

    @property
    def elbo(self) -> Values:
        """[N]."""
        return self.reconstruction - self.kl


def evaluate(
    model: VAE,
    validation: Pixels,
    test: Pixels,
    *,
    objective: str,
    importance_samples: int,
    active_units_threshold: float,
    seed: int,
) -> Evaluation:
    """Score a model on the validation and the test split; of an autoencoder only its reconstructions.

    "elbo", "reconstruction" and "kl" are the bound and its terms at one posterior sample an image, "nll" is the
    importance-sampled -log p(x), "gap" = log p(x) - ELBO, each a mean over images in nats with its standard error
    "_se"; bits per dimension are those of the ELBO and of the NLL. "mse" and "psnr" (decibels) hold the expected
    image at the posterior mean against the image, in pixels on [0, 1].

    Raises UserError where a split has fewer than two images or an image's number is not finite.
    """
    held_out, tested = bound(model, validation, seed), bound(model, test, seed)
    squared_errors, means = reconstruct(model, test)
    scores = _bound_report(model, "test", tested)
    scores |= {"mse": _mean("test", "mse", squared_errors)["mse"], "psnr": mean_psnr(squared_errors)}
    if not model.deterministic:
        log_likelihoods = log_likelihood(model, test, importance_samples, seed)
        scores |= _mean("test", "nll", -log_likelihoods)
        scores["bits_per_dimension_nll"] = _bits(model, log_likelihoods)
        scores |= _mean("test", "gap", log_likelihoods - tested.elbo)  # its se, of differences, is a small one
        scores["importance_samples"] = importance_samples
        scores["active_units"] = metrics.active_units(means, active_units_threshold)[0]
    report = {
        "objective": objective,
        "protocol": PROTOCOLS[model.likelihood.measure],
        "validation": _bound_report(model, "validation", held_out),
        "test": scores,
    }
    has_parts = len(tested.kl_per_dimension) == model.latent_dim and not model.deterministic
    return Evaluation(report, list(enumerate(tested.kl_per_dimension.tolist())) if has_parts else [])


@torch.no_grad()
def bound(model: VAE, pixels: Pixels, seed: int) -> Bound:
    """The ELBO's terms with one posterior sample an image (none for an autoencoder: its code is the mean)."""
    reconstruction, kl, sums = [], [], torch.zeros(1, dtype=torch.float64)
    for indices, batch in pixel_batches(model, pixels):
        noise = None
        if not model.deterministic:
            noise = estimators.per_image_noise(seed, indices, (model.latent_dim,)).to(batch.device)
        terms = elbo_terms(model, observe(model, batch, indices, seed), noise)
        reconstruction.append(terms.reconstruction.double().cpu())
        parts = terms.kl_per_dimension.double().cpu()  # [B, Z], or [B, 1] where the KL has no parts
        kl.append(parts.sum(1))
        sums = sums + parts.sum(0)
    return Bound(torch.cat(reconstruction).numpy(), torch.cat(kl).numpy(), (sums / len(pixels)).numpy())


@torch.no_grad()
def reconstruct(model: VAE, pixels: Pixels) -> tuple[Values, Tensor]:
    """The mean squared error of each image's reconstruction, [N], and the posterior means, [N, Z].

    Without noise: the image is `likelihood.observe(pixels, None)`, its reconstruction that of the posterior mean.
    """
    errors, means = [], []
    for _, batch in pixel_batches(model, pixels):
        x = model.likelihood.observe(batch, None)
        mean = model.encode(x).mean
        errors.append(metrics.mean_squared_error(x, sampling.decoded(model, mean)).double().cpu())
        means.append(mean.cpu())
    return torch.cat(errors).numpy(), torch.cat(means)


def log_likelihood(model: VAE, pixels: Pixels, k: int, seed: int) -> Values:
    """log p(x) of each image by importance sampling with k samples, [N] in nats.

    A lower bound in expectation, tighter with k (Burda et al. 2015, arXiv:1509.00519).
    """
    dimensions = math.prod(model.shape)
    images = max(1, min(BATCH, PIXELS_AT_ONCE // (dimensions * min(k, 16))))
    estimates, reported = [], time.monotonic()
    for indices, batch in pixel_batches(model, pixels, images):
        chunk = max(1, PIXELS_AT_ONCE // (dimensions * len(batch)))
        estimates.append(estimators.log_likelihood(model, batch, indices, k=k, seed=seed, chunk=chunk)[0].cpu())
        if time.monotonic() > reported + REPORT_SECONDS:
            reported = time.monotonic()
            log.info("log p(x) with %d samples: %d of %d test images", k, indices.stop, len(pixels))
    return torch.cat(estimates).numpy()


def _bound_report(model: VAE, split: str, terms: Bound) -> dict[str, Any]:
    if model.deterministic:
        return _mean(split, "reconstruction", terms.reconstruction)
    return {
        **_mean(split, "elbo", terms.elbo),
        **_mean(split, "reconstruction", terms.reconstruction),
        **_mean(split, "kl", terms.kl),
        "bits_per_dimension": _bits(model, terms.elbo),
    }


def _mean(split: str, name: str, values: Values) -> dict[str, float]:
    """The mean over a split and its standard error, sd / sqrt(N), as `name` and `name_se`."""
    if len(values) < 2:
        raise UserError(f"data.{split}: leaves {len(values)} image; a standard error needs at least 2")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise UserError(
            f"{split} split: the {name} of image {wrong[0]} is {values[wrong[0]]}"
            f" ({len(wrong)} of {len(values)} are not finite): the model does not fit these data; train it again"
        )
    return Measured.of(values).numbers(name)


def _bits(model: VAE, log_likelihoods: Values) -> float:
    density = model.likelihood.measure == "density"
    return bits_per_dimension(float(log_likelihoods.mean()), math.prod(model.shape), density_on_unit_interval=density)


def mean_psnr(squared_errors: Values) -> float:
    """The mean PSNR over images in decibels; an error below that of rounding to 8 bits counts as that (58.9 dB)."""
    return float(metrics.psnr(torch.from_numpy(squared_errors).clamp(min=FINEST_SQUARED_ERROR)).mean())
