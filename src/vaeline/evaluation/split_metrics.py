"""How good a trained model is on a split: every image exactly once, in nats per image, with standard errors.

Sums are in float64, and a number that is not finite is an error, never left out. Noise depends on (seed, image) alone,
so that a batch's size changes only the rounding and two models see the same dequantised pixels.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core import estimators
from vaeline.core.estimators import BATCH, PIXELS_AT_ONCE, Proposal, gathered, observe, pixel_batches
from vaeline.core.likelihoods import Gaussian, Laplace, Measure
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE, decoded
from vaeline.core.objectives import elbo_terms
from vaeline.errors import UserError
from vaeline.io.npy import Pixels
from vaeline.io.progress import Progress

log = logging.getLogger(__name__)

Values = npt.NDArray[np.float64]  # [N], one an image

FEW_SAMPLES = 5  # effective ones, of an image
FINEST_SQUARED_ERROR = 1 / (12 * 256**2)  # of rounding to 8 bits; no reconstruction can be seen to be nearer

PROTOCOLS: dict[Measure, str] = {
    "binary": "binary pixels, drawn once",
    "density": "uniformly dequantised 8-bit pixels, x = (u8 + u) / 256, u ~ U[0, 1)",
    "discrete": "exact 8-bit pixels",
}
UNCONFINED = "; the density is one on all reals, part of whose mass no pixel can have"


@dataclass(frozen=True)
class Bound:
    """The ELBO's terms of each image of a split, in nats."""

    reconstruction: Values  # [N]
    kl: Values  # [N]

    @property
    def elbo(self) -> Values:
        """[N]."""
        return self.reconstruction - self.kl


@dataclass(frozen=True)
class Scores:
    """What the gate measures of one model on one split."""

    elbo: Values  # [N], nats; may hold values that are not finite
    psnr: float  # decibels, mean over the images
    active_units: int
    ssim: float | None = None  # mean over the images, of a first stage


def evaluate(
    model: VAE,
    validation: Pixels,
    test: Pixels,
    *,
    importance_samples: int,
    proposal: Proposal,
    active_units_threshold: float,
    seed: int,
) -> tuple[dict[str, Any], list[tuple[int, float]]]:
    """Score a model on the validation and the test split; of an autoencoder only its reconstructions.

    Returns part of reports/metrics.json, and (latent dimension, `marginal_kl`), none of an autoencoder. "elbo",
    "reconstruction" and "kl" are at one posterior sample an image, "nll" is the importance-sampled -log p(x), "gap" =
    log p(x) - ELBO, each a mean over images in nats with its standard error "_se"; "effective_samples" is the median
    over images of (sum w)^2 / sum w^2; "mse" and "psnr" (decibels, the mean of each image's) are of the expected image
    at the posterior mean, in pixels on [0, 1]. Raises UserError where a split has fewer than two images or an image's
    number is not finite.
    """
    held_out, tested = bound(model, validation, seed), bound(model, test, seed)
    squared_errors, means = reconstruct(model, test)
    scores = _bound_report(model, "test", tested)
    scores |= {"mse": _mean("test", "mse", squared_errors)["mse"], "psnr": mean_psnr(squared_errors)}
    if not model.deterministic:
        log_likelihoods, effective = log_likelihood(model, test, importance_samples, seed, proposal)
        scores |= _mean("test", "nll", -log_likelihoods)
        scores["bits_per_dimension_nll"] = _bits(model, log_likelihoods)
        scores |= _mean("test", "gap", log_likelihoods - tested.elbo)  # its se, of differences, is a small one
        scores |= {"importance_samples": importance_samples, "proposal": proposal}
        if importance_samples > 1:
            scores["effective_samples"] = float(np.median(effective))
            if few := int((effective < FEW_SAMPLES).sum()):
                log.warning(
                    "nll: of %d of %d test images fewer than %d of %d samples count: it may be too high by nats; "
                    "raise evaluate.importance_samples",
                    *(few, len(test), FEW_SAMPLES, importance_samples),
                )
        scores["active_units"] = _active_units(means, active_units_threshold)
    likelihood = model.likelihood
    is_unconfined = isinstance(likelihood, Laplace) or (isinstance(likelihood, Gaussian) and not likelihood.truncated)
    report = {
        "protocol": PROTOCOLS[likelihood.measure] + (UNCONFINED if is_unconfined else ""),
        "validation": _bound_report(model, "validation", held_out),
        "test": scores,
    }
    return report, [] if model.deterministic else list(enumerate(marginal_kl(model, test, seed).tolist()))


def score(model: VAE, pixels: Pixels, *, seed: int, active_units_threshold: float) -> Scores:
    """Each image's ELBO, the reconstructions' PSNR and the active units, as the stage evaluate measures them."""
    squared_errors, means = reconstruct(model, pixels)
    elbo = bound(model, pixels, seed).elbo
    return Scores(elbo, mean_psnr(squared_errors), _active_units(means, active_units_threshold))


def gain(challenger: Scores, champion: Scores) -> Measured:
    """The mean gain in nats of ELBO_challenger(x_i) - ELBO_champion(x_i); paired, so what both find hard cancels."""
    with np.errstate(invalid="ignore"):  # inf - inf: the gate refuses what is not finite
        return Measured.of(challenger.elbo - champion.elbo)


@torch.no_grad()
def bound(model: VAE, pixels: Pixels, seed: int) -> Bound:
    """The ELBO's terms with one posterior sample an image (none for an autoencoder: its code is the mean)."""

    def terms(indices: range, batch: Tensor) -> Tensor:
        noise = None
        if not model.deterministic:
            noise = estimators.per_image_noise(seed, indices, (model.latent_dim,)).to(batch.device)
        found = elbo_terms(model, observe(model, batch, indices, seed), noise)
        return torch.stack([found.reconstruction.double(), found.kl_per_dimension.double().sum(1)], 1)

    found = gathered((terms(*part) for part in pixel_batches(model, pixels)), len(pixels))
    return Bound(*found.T.contiguous().numpy())


@torch.no_grad()
def marginal_kl(model: VAE, pixels: Pixels, seed: int) -> Values:
    """KL(q(z_d|x) || p(z_d)) of each latent dimension, mean over the images at the samples of `bound`, in nats: [Z].

    To the prior's marginal in that dimension: they add up to the KL under a prior that factorises, else to another
    number.
    """
    sums = torch.zeros(model.latent_dim, dtype=torch.float64)
    for posterior, z in estimators.posterior_samples(model, pixels, seed):
        sums += model.prior.marginal_kl(posterior, z).double().cpu().sum(0)
    return (sums / len(pixels)).numpy()


@torch.no_grad()
def reconstruct(model: VAE, pixels: Pixels) -> tuple[Values, Tensor]:
    """The mean squared error of each image's reconstruction, without noise, [N], and the posterior means, [N, Z]."""

    def errors_and_means(x: Tensor) -> Tensor:
        mean = model.encode(x).mean
        return torch.cat([(x - decoded(model, mean)).square().flatten(1).mean(1, keepdim=True), mean], 1)

    images = (model.likelihood.observe(batch, None) for _, batch in pixel_batches(model, pixels))
    found = gathered(map(errors_and_means, images), len(pixels))
    return found[:, 0].double().numpy(), found[:, 1:].contiguous()


def log_likelihood(
    model: VAE, pixels: Pixels, k: int, seed: int, proposal: Proposal = "posterior"
) -> tuple[Values, Values]:
    """log p(x) of each image by importance sampling with k samples, in nats: a lower bound in expectation; [N].

    And the effective sample sizes (sum w)^2 / sum w^2, [N]; NaN for k = 1.
    """
    dimensions = math.prod(model.shape)
    copies = max(min(k, 16), model.latent_dim if proposal == "laplace" else 1)
    images = max(1, min(BATCH, PIXELS_AT_ONCE // (dimensions * copies)))

    def estimates(reporter: Progress) -> Iterator[Tensor]:
        for indices, batch in pixel_batches(model, pixels, images):
            chunk = max(1, PIXELS_AT_ONCE // (dimensions * len(batch)))
            found = estimators.log_likelihood(model, batch, indices, k=k, seed=seed, chunk=chunk, proposal=proposal)
            yield torch.stack(found, 1)
            reporter.update(indices.stop)

    with Progress(f"log p(x) with {k} samples", len(pixels), "images") as reporter:
        estimate, error = gathered(estimates(reporter), len(pixels)).T.contiguous()
    return estimate.numpy(), (k / (1 + (k - 1) * error.square())).numpy()


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
    """-log p / (D log 2) bits; the volume element of dequantised pixels costs log2(256) = 8 (Theis et al. 2016)."""
    bits = -float(log_likelihoods.mean()) / (math.prod(model.shape) * math.log(2.0))
    return bits + 8.0 if model.likelihood.measure == "density" else bits


def _active_units(means: Tensor, threshold: float) -> int:
    """How many dimensions of posterior means [N, Z] vary more than the threshold (Burda et al. 2015, section 5.2)."""
    return int((means.double().var(0) > threshold).sum())


def mean_psnr(squared_errors: Values) -> float:
    """The mean over images of -10 log10(MSE), decibels; errors below that of rounding to 8 bits count as it (58.9)."""
    return float((-10 * torch.from_numpy(squared_errors).clamp(min=FINEST_SQUARED_ERROR).log10()).mean())
