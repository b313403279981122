"""Gate: the decision whether a model becomes the champion, a pure function of the evidence.

A challenger is promoted when it is sound and, on the test split, gain - z(confidence) * se > margin, where gain and
se are those of the paired ELBO differences to the champion and z is the one-sided normal quantile: the risk of
promoting a model whose true gain is no more than the margin is at most 1 - confidence.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TypeGuard

import numpy as np

from vaeline.config import Register
from vaeline.evaluation.split_metrics import Scores, gain

WAY_OUT = "register under another name, or `vaeline promote NAME VERSION --force --reason TEXT`"


@dataclass(frozen=True)
class Evidence:
    """Training and measurements of a model, by its digest."""

    digest: str
    data_digest: str
    likelihood: str  # kind: nats of different likelihoods cannot be compared
    objective: str
    validation_elbo: float  # nats per image; NaN where it is not known
    active_units: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # everything that was measured
    blind_elbo: float = -math.inf  # nats per image of a fixed model that has learned nothing
    scores: Scores | None = None  # None where it has no ELBO, or there is nothing to compare it with


@dataclass(frozen=True)
class Decision:
    """Whether to promote, the reasons, and the numbers behind them, all of them finite."""

    promote: bool
    reasons: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


def decide(challenger: Evidence, champion: Evidence | str | None, thresholds: Register) -> Decision:
    """Promote a sound model that is better than the champion on the same data, or the first sound one.

    `champion` is the reason where its stored model cannot be read.
    """
    if isinstance(champion, Evidence) and champion.digest == challenger.digest:
        return Decision(False, ("it is the champion already",))
    failures = list(_own_failures(challenger, thresholds.minimum_active_units))
    scores, numbers = challenger.scores, dict[str, float](active_units=challenger.active_units)
    if _finite(scores):
        numbers |= {"images": len(scores.elbo), "elbo": float(scores.elbo.mean()), "psnr": scores.psnr}
    if champion is None:
        return Decision(not failures, tuple(failures) or ("no champion before it",), numbers)
    obstacles = []
    if isinstance(champion, str):
        obstacles.append(f"the champion cannot be read: {champion}")
    else:
        if challenger.data_digest != champion.data_digest:
            obstacles.append(f"its data is {challenger.data_digest[:12]}, the champion's {champion.data_digest[:12]}")
        if challenger.likelihood != champion.likelihood:
            obstacles.append(f"its likelihood is {challenger.likelihood}, the champion's {champion.likelihood}")
        if champion.objective == "autoencoder":
            obstacles.append("the champion is an autoencoder, which has no ELBO")
        if champion.scores is not None and not _finite(champion.scores):
            obstacles.append("the champion's scores on the test split are not finite")
    failures += [f"not compared: {obstacle}; {WAY_OUT}" for obstacle in obstacles]
    if obstacles or isinstance(champion, str) or not _finite(scores) or not _finite(champion.scores):
        return Decision(False, tuple(failures), numbers)
    return _compare(scores, champion.scores, thresholds, failures, numbers)


def _own_failures(model: Evidence, minimum_active_units: int) -> Iterator[str]:
    broken = sorted(name for name, value in model.metrics.items() if not math.isfinite(value))
    if broken:
        yield f"not finite: {', '.join(broken)}"
    if model.objective == "autoencoder":
        yield f"objective '{model.objective}' has no ELBO to compare"
        return
    if not math.isfinite(model.validation_elbo) and not broken:
        yield "no finite validation ELBO"
    if model.validation_elbo < model.blind_elbo:
        fixed = f"a fixed model that has learned nothing has {model.blind_elbo:.5g}"
        yield f"validation ELBO {model.validation_elbo:.5g} nats per image, {fixed}"
    if model.scores is not None and not _finite(model.scores):
        count, images = int((~np.isfinite(model.scores.elbo)).sum()), len(model.scores.elbo)
        yield f"not finite: its ELBO on {count} of {images} test images, its PSNR {model.scores.psnr:.2f} dB"
    if model.active_units < minimum_active_units:
        yield f"{model.active_units} active units, register.minimum_active_units is {minimum_active_units}"


def _finite(scores: Scores | None) -> TypeGuard[Scores]:
    return scores is not None and bool(np.isfinite(scores.elbo).all()) and math.isfinite(scores.psnr)


def _compare(
    challenger: Scores, champion: Scores, thresholds: Register, failures: list[str], own: dict[str, float]
) -> Decision:
    """Compare the gain with the margin, and the PSNR with the tolerance."""
    margin, confidence, tolerance = thresholds.margin, thresholds.confidence, thresholds.psnr_tolerance
    found = gain(challenger, champion)
    lower = found.value - NormalDist().inv_cdf(confidence) * found.se
    measured = (
        f"gain {found.value:+.4f} \u00b1 {found.se:.4f} nats per image on {len(challenger.elbo)} test images, at least "
        f"{lower:+.4f} with {confidence:.4g} confidence"
    )
    if not lower > margin:
        failures.append(f"{measured}: not above register.margin {margin:g}")
    fidelity = f"PSNR {challenger.psnr:.2f} dB, the champion's {champion.psnr:.2f}"
    if challenger.psnr < champion.psnr - tolerance:
        failures.append(f"{fidelity}: worse by more than register.psnr_tolerance {tolerance:g} dB")
    if challenger.ssim is not None and champion.ssim is not None:
        own |= {"ssim": challenger.ssim, "champion_ssim": champion.ssim}
        if challenger.ssim < champion.ssim - thresholds.ssim_tolerance:
            likeness = f"SSIM {challenger.ssim:.4f}, the champion's {champion.ssim:.4f}"
            failures.append(f"{likeness}: worse by more than register.ssim_tolerance {thresholds.ssim_tolerance:g}")
    numbers = own | {"gain": found.value, "gain_se": found.se, "gain_lower": lower, "margin": margin}
    numbers |= {"confidence": confidence, "champion_elbo": float(champion.elbo.mean()), "champion_psnr": champion.psnr}
    return Decision(not failures, tuple(failures) or (f"{measured}: above {margin:g}", fidelity), numbers)
