"""Two models held against each other on the same images: paired, so that what both find hard cancels.

With d_i = ELBO_challenger(x_i) - ELBO_champion(x_i), the gain is mean(d) and its standard error sd(d) / sqrt(N), in
nats per image. Noise depends on (seed, image) alone, so both models see the same dequantised pixels.
"""

from dataclasses import dataclass

import numpy as np

from vaeline.core.metrics import Measured, active_units
from vaeline.core.model import VAE
from vaeline.errors import UserError
from vaeline.evaluation.split_metrics import Pixels, Values, bound, mean_psnr, reconstruct


@dataclass(frozen=True)
class Scores:
    """What the gate measures of one model on one split."""

    elbo: Values  # [N], nats; may hold values that are not finite
    psnr: float  # decibels, mean over the images
    active_units: int


def score(model: VAE, pixels: Pixels, *, seed: int, active_units_threshold: float) -> Scores:
    """Each image's ELBO, the reconstructions' PSNR and the active units, as the stage evaluate measures them."""
    squared_errors, means = reconstruct(model, pixels)
    units = active_units(means, active_units_threshold)[0]
    return Scores(bound(model, pixels, seed).elbo, mean_psnr(squared_errors), units)


def gain(challenger: Scores, champion: Scores) -> Measured:
    """The paired gain of one model over another on the same images, in nats per image.

    Raises UserError where there are fewer than two, which show no spread.
    """
    with np.errstate(invalid="ignore"):  # inf - inf: the gate refuses what is not finite
        differences = challenger.elbo - champion.elbo
        if len(differences) < 2:
            raise UserError(f"data.test: leaves {len(differences)} image; a standard error needs at least 2")
        return Measured.of(differences)
