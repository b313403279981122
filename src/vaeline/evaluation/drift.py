"""Does a batch of images look like the test data? Two-sample tests on per-image ELBOs, in nats.

The reference, the ELBOs of test images, travels with the registered model. Both tests are exact for any distribution
of ELBOs, and two-sided: unfamiliar images can score higher than familiar ones (Nalisnick et al. 2019,
arXiv:1810.09136), and are then not typical (Nalisnick et al. 2019, arXiv:1906.02994).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from vaeline.errors import UserError

Values = npt.NDArray[np.float64]  # [N], one an image

REFERENCE = "reference.safetensors"  # beside model.safetensors, in a registered model
REFERENCE_SEED = 0x7E57E1B0  # of the reference's noise: its own, so that no scored image shares its noise with it
REFERENCE_IMAGES = 4096  # at most
LARGEST_FILE = 64 << 10  # bytes
TENSOR = "test_elbo"
COVERED = 0.99  # the reference's central range


@dataclass(frozen=True)
class Verdict:
    """What a batch looks like beside the reference."""

    p_value: float  # of "same distribution", both tests together
    p_shape: float  # Kolmogorov-Smirnov
    p_tails: float  # too many images outside the reference's central range
    median_shift: float  # nats, batch less reference
    outside: float  # fraction of the batch outside that range
    outside_expected: float
    level: float

    @property
    def drift(self) -> bool:
        """Whether "same distribution" is rejected: wrongly so in at most `level` of all batches."""
        return self.p_value <= self.level


def compare(reference: Values, batch: Values, level: float) -> Verdict:
    """Test whether `batch` [M] comes from the distribution that `reference` [N] came from.

    Two tests, each on one half of the level (Bonferroni), p = min(1, 2 min(p_shape, p_tails)): the two-sample
    Kolmogorov-Smirnov test sees a change in the bulk, the other one a few images that are far off, outside the range
    from the r-th smallest to the r-th largest of the reference. A new image of the same distribution lies there with a
    probability that is itself Beta(2r, N + 1 - 2r) (Wilks 1941), so that of M images the number outside is
    beta-binomial, whatever the distribution. An ELBO that is NaN counts as -inf.
    """
    from scipy import stats  # type: ignore[import-untyped]

    count, ordered, batch = len(reference), np.sort(reference), np.where(np.isnan(batch), -np.inf, batch)
    rank = max(1, int((1 - COVERED) / 2 * (count + 1)))
    outside = int(((batch < ordered[rank - 1]) | (batch > ordered[count - rank])).sum())
    p_tails = float(stats.betabinom.sf(outside - 1, len(batch), 2 * rank, count + 1 - 2 * rank))
    p_shape = float(stats.ks_2samp(reference, batch).pvalue)
    p_value = min(1.0, 2 * min(p_shape, p_tails))
    shift = float(np.median(batch) - np.median(reference))
    return Verdict(p_value, p_shape, p_tails, shift, outside / len(batch), 2 * rank / (count + 1), level)


def quantiles(reference: Values, batch: Values) -> Values:
    """Where each score lies in the reference: the fraction of it below, ties counted half; [M] on [0, 1]."""
    ordered = np.sort(reference)
    left, right = (np.searchsorted(ordered, batch, side) for side in ("left", "right"))
    return (left + right) / (2 * len(ordered))


def spread_evenly(count: int) -> npt.NDArray[np.int64]:
    """Which of `count` test images make the reference: at most REFERENCE_IMAGES, evenly spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, REFERENCE_IMAGES)).round().astype(np.int64))


def reference_bytes(elbo: Values) -> bytes:
    """The content of `REFERENCE`: one tensor, float32 [N]."""
    return safetensors_save({TENSOR: np.ascontiguousarray(elbo, np.float32)})


def parse_reference(content: bytes, where: str) -> Values:
    """The inverse, sizes and values checked. Raises UserError, which begins with `where`."""
    try:
        elbo = safetensors_load(content)[TENSOR] if len(content) <= LARGEST_FILE else np.zeros(0)
    except (SafetensorError, KeyError, ValueError):
        elbo = np.zeros(0)
    right = elbo.dtype == np.float32 and elbo.ndim == 1 and 2 <= len(elbo) <= REFERENCE_IMAGES
    if not (right and np.isfinite(elbo).all()):
        allowed = f"{TENSOR}, float32, 2 to {REFERENCE_IMAGES} finite numbers"
        raise UserError(f"{where}: is not a reference; allowed: {allowed}")
    return elbo.astype(np.float64)
