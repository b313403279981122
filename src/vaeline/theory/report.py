"""All claims, one after another, as files."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from vaeline.theory import bounds, codes, divergence, first_stage, gradients, page, scales
from vaeline.theory.context import Subject, finite
from vaeline.theory.page import Claim

log = logging.getLogger(__name__)

TITLE = "The theory, on the model just trained"
INTRODUCTION = (
    "Each section is a claim: its equation, the numbers that were found, a picture. Nats per image; ± is one standard "
    "error. The numbers are in theory.json; params section theory says on how many images."
)
CLAIMS: tuple[Callable[[Subject], Claim], ...] = (
    codes.sampling_claim,
    bounds.gap,
    bounds.terms,
    gradients.estimators,
    lambda subject: divergence.asymmetry(),
    gradients.batch_size,
    scales.log_variance,
    scales.squared_error,
    first_stage.latent_diffusion,
)


@dataclass(frozen=True)
class Report:
    """The claims, and the files that show them."""

    claims: tuple[Claim, ...]

    def numbers(self) -> bytes:
        """JSON, one key a claim."""
        content = {claim.key: finite({"applies": bool(claim.numbers), **claim.numbers}) for claim in self.claims}
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def files(self) -> dict[str, bytes]:
        """The page, twice, and its pictures, by name."""
        files = {
            "theory.md": page.markdown(TITLE, INTRODUCTION, self.claims).encode(),
            "theory.html": page.document(TITLE, INTRODUCTION, self.claims).encode(),
        }
        return files | {f"{p.name}.png": p.png for claim in self.claims for p in claim.pictures}


def show(subject: Subject) -> Report:
    """Show every claim."""
    claims = []
    for make in CLAIMS:
        start = time.perf_counter()
        claims.append(make(subject))
        log.info("%d of %d: %s (%.1f s)", len(claims), len(CLAIMS), claims[-1].title, time.perf_counter() - start)
    return Report(tuple(claims))
