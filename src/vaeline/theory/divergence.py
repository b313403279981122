"""Claim: the KL is never negative, and not symmetric."""

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vaeline.plotting.charts import INK, chart
from vaeline.theory.claim import Claim
from vaeline.theory.context import Context

Values = npt.NDArray[np.float64]

GRID = np.linspace(-9, 9, 3601)
PARTS = ((0.6, -2.0, 0.6), (0.4, 2.0, 0.8))  # of the mixture p: weight, mean, standard deviation
PAIRS = 100_000


def asymmetry(_: Context | None = None) -> Claim:
    """Two Gaussians both ways, and a mixture fitted by one Gaussian both ways."""
    p, mean = mixture(), sum(weight * mean for weight, mean, _ in PARTS)
    covering = mean, math.sqrt(sum(weight * (sd**2 + m**2) for weight, m, sd in PARTS) - mean**2)  # p's own moments
    fits = {"KL(p ‖ q), covers": covering, "KL(q ‖ p), seeks a mode": mode_seeking(p)}
    found = {name: (*fit, kl(p, gaussian(*fit)), kl(gaussian(*fit), p)) for name, fit in fits.items()}
    there, back = kl_of_gaussians(0, 1, 1, 2), kl_of_gaussians(1, 2, 0, 1)
    rng = np.random.default_rng(0)
    shift = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 1, PAIRS)
    log_ratio = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 0.3, PAIRS)  # some pairs are nearly equal
    least = float((0.5 * (np.expm1(2 * log_ratio) - 2 * log_ratio + shift**2)).min())
    title = "The KL is never negative and not symmetric"
    equation = "KL(q ‖ p) = E_q[log q - log p] ≥ 0,   = 0 only where q = p,   KL(q ‖ p) ≠ KL(p ‖ q)"
    words = (
        f"Two Gaussians: KL(N(0, 1²) ‖ N(1, 2²)) = {there:.4f}, the other way round {back:.4f} nats. The smallest KL "
        f"of {PAIRS:,} random pairs of Gaussians is {least:.2e}.",
        "A mixture p fitted by one Gaussian q: the q with the least KL(p ‖ q) must cover all of p, the one with the "
        "least KL(q ‖ p) may leave a mode out. The ELBO's gap is of the second kind, KL(q(z|x) ‖ p(z|x)): posteriors "
        "come out too narrow rather than too wide.",
    )
    numbers: dict[str, Any] = {"kl_of_gaussians": there, "kl_of_gaussians_reversed": back}
    numbers["smallest_of_random_pairs"] = least
    for key, values in zip(("covering", "mode_seeking"), found.values(), strict=True):
        numbers[key] = dict(zip(("mean", "sd", "kl_p_q", "kl_q_p"), values, strict=True))
    header = ("q minimises", "mean", "standard deviation", "KL(p ‖ q), nats", "KL(q ‖ p), nats")
    rows = [(name, f"{m:.3f}", f"{s:.3f}", f"{pq:.4f}", f"{qp:.4f}") for name, (m, s, pq, qp) in found.items()]
    caption = "Left: zero where the two are equal, else positive, different both ways. Right: one mixture, two fits."
    picture = chart("divergence", caption, partial(_draw, p=p, fits=fits), panels=2)
    return Claim("divergence", title, equation, words, numbers, (header, *rows), (picture,))


def gaussian(mean: float, sd: float) -> Values:
    """Log density on the grid."""
    return -0.5 * ((GRID - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def mixture() -> Values:
    """Log density of p on the grid."""
    return np.logaddexp(*(math.log(w) + gaussian(mean, sd) for w, mean, sd in PARTS))


def kl(a: Values, b: Values) -> float:
    """KL(a || b) in nats of log densities on the grid, by the trapezoid rule."""
    return float(np.trapezoid(np.exp(a) * (a - b), GRID))


def kl_of_gaussians(mean: float, sd: float, other_mean: float, other_sd: float) -> float:
    """In closed form."""
    return math.log(other_sd / sd) + (sd**2 + (mean - other_mean) ** 2) / (2 * other_sd**2) - 0.5


def mode_seeking(p: Values) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian of least KL(q || p), by four rounds of an ever finer grid."""
    best, reach = (0.0, 1.5), (3.0, 1.4)
    for _ in range(4):
        means = np.linspace(best[0] - reach[0], best[0] + reach[0], 25)
        sds = np.linspace(max(0.05, best[1] - reach[1]), best[1] + reach[1], 25)
        best = min(((float(m), float(s)) for m in means for s in sds), key=lambda q: kl(gaussian(*q), p))
        reach = (reach[0] / 10, reach[1] / 10)
    return best


def _draw(left: Any, right: Any, p: Values, fits: dict[str, tuple[float, float]]) -> None:
    sds = np.exp(np.linspace(math.log(0.3), math.log(3), 200))
    left.plot(sds, [kl_of_gaussians(0, s, 0, 1) for s in sds], label="KL(q ‖ p)")
    left.plot(sds, [kl_of_gaussians(0, 1, 0, s) for s in sds], label="KL(p ‖ q)")
    left.axhline(0, color=INK, linewidth=0.8)
    left.set(xlabel="s", ylabel="nats", title="q = N(0, s²), p = N(0, 1)", ylim=(-0.2, 4))
    right.fill_between(GRID, np.exp(p), color="#7d7d7d55", label="p")
    for name, fit in fits.items():
        right.plot(GRID, np.exp(gaussian(*fit)), label=f"q of least {name}")
    right.set(xlim=(-7, 7), xlabel="z", ylabel="density", title="One mixture, fitted both ways", ylim=(0, 0.85))
    left.legend()
    right.legend()
