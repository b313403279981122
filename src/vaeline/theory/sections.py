"""All claims in the order of the page."""

import logging
import time
from collections.abc import Callable

from vaeline.theory import bounds, codes, divergence, first_stage, gradients, scales
from vaeline.theory.claim import Claim
from vaeline.theory.context import Context

log = logging.getLogger(__name__)

SECTIONS: tuple[Callable[[Context], Claim], ...] = (
    codes.latent_space,
    bounds.gap,
    bounds.terms,
    gradients.estimators,
    divergence.asymmetry,
    gradients.batch_size,
    scales.log_variance,
    scales.squared_error,
    first_stage.latent_diffusion,
)


def all_sections(context: Context) -> list[Claim]:
    """Every claim, measured on the trained model."""
    claims = []
    for section in SECTIONS:
        start = time.perf_counter()
        claims.append(section(context))
        log.info("%d of %d: %s (%.1f s)", len(claims), len(SECTIONS), claims[-1].title, time.perf_counter() - start)
    return claims
