"""Claim: the KL is never negative, and not symmetric."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from vaeline.plotting.charts import INK, chart
from vaeline.theory.claim import Claim, Table
from vaeline.theory.context import Context

Values = npt.NDArray[np.float64]

GRID = np.linspace(-9, 9, 3601)
PARTS = ((0.6, -2.0, 0.6), (0.4, 2.0, 0.8))  # weight, mean, standard deviation
PAIRS = 100_000


def asymmetry(_: Context | None = None) -> Claim:
    """Two Gaussians both ways, and a mixture fitted by one Gaussian both ways."""
    p = mixture()
    outer, inner = mean_seeking(), mode_seeking()
    fits = {"KL(p ‖ q), covers": outer, "KL(q ‖ p), seeks a mode": inner}
    both = {name: (kl(p, gaussian(*fit)), kl(gaussian(*fit), p)) for name, fit in fits.items()}
    there, back = kl_of_gaussians(0, 1, 1, 2), kl_of_gaussians(1, 2, 0, 1)
    least = smallest_of_pairs()
    words = (
        f"Two Gaussians: KL(N(0, 1²) ‖ N(1, 2²)) = {there:.4f}, the other way round {back:.4f} nats. The smallest KL "
        f"of {PAIRS:,} random pairs of Gaussians is {least:.2e}.",
        "A mixture p fitted by one Gaussian q: the q with the least KL(p ‖ q) must cover all of p, the one with the "
        "least KL(q ‖ p) may leave a mode out. The ELBO's gap is of the second kind, KL(q(z|x) ‖ p(z|x)): posteriors "
        "come out too narrow rather than too wide.",
    )
    rows = tuple(
        (name, f"{fits[name][0]:.3f}", f"{fits[name][1]:.3f}", f"{forward:.4f}", f"{reverse:.4f}")
        for name, (forward, reverse) in both.items()
    )
    header = ("q minimises", "mean", "standard deviation", "KL(p ‖ q), nats", "KL(q ‖ p), nats")
    numbers = {
        "kl_of_gaussians": there,
        "kl_of_gaussians_reversed": back,
        "smallest_of_random_pairs": least,
        **{
            name: {"mean": fit[0], "sd": fit[1], "kl_p_q": forward, "kl_q_p": reverse}
            for name, fit, (forward, reverse) in zip(
                ("covering", "mode_seeking"), fits.values(), both.values(), strict=True
            )
        },
    }
    picture = chart(
        "divergence",
        "Left: zero where the two are equal, positive elsewhere, different both ways. Right: one mixture, two fits.",
        _both_ways,
        lambda axes: _fits(axes, p, fits),
    )
    equation = "KL(q ‖ p) = E_q[log q - log p] ≥ 0,   = 0 only where q = p,   KL(q ‖ p) ≠ KL(p ‖ q)"
    title = "The KL is never negative and not symmetric"
    return Claim("divergence", title, equation, words, numbers, Table(header, rows), (picture,))


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


def mean_seeking() -> tuple[float, float]:
    """The Gaussian of least KL(p || q): p's own mean and standard deviation."""
    mean = sum(w * m for w, m, _ in PARTS)
    return mean, math.sqrt(sum(w * (s**2 + m**2) for w, m, s in PARTS) - mean**2)


def mode_seeking() -> tuple[float, float]:
    """The Gaussian of least KL(q || p), by three rounds of an ever finer grid."""
    p, best, reach = mixture(), (0.0, 1.5), (3.0, 1.4)
    for _ in range(4):
        means = np.linspace(best[0] - reach[0], best[0] + reach[0], 25)
        sds = np.linspace(max(0.05, best[1] - reach[1]), best[1] + reach[1], 25)
        best = min(((float(m), float(s)) for m in means for s in sds), key=lambda q: kl(gaussian(*q), p))
        reach = (reach[0] / 10, reach[1] / 10)
    return best


def smallest_of_pairs() -> float:
    """The least KL over random pairs of Gaussians, some of them nearly equal."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 1, PAIRS)
    log_ratio = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 0.3, PAIRS)
    return float((0.5 * (np.expm1(2 * log_ratio) - 2 * log_ratio + shift**2)).min())


def _both_ways(axes: Any) -> None:
    sds = np.exp(np.linspace(math.log(0.3), math.log(3), 200))
    axes.plot(sds, [kl_of_gaussians(0, s, 0, 1) for s in sds], label="KL(q ‖ p)")
    axes.plot(sds, [kl_of_gaussians(0, 1, 0, s) for s in sds], label="KL(p ‖ q)")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="s", ylabel="nats", title="q = N(0, s²), p = N(0, 1)", ylim=(-0.2, 4))
    axes.legend()


def _fits(axes: Any, p: Values, fits: dict[str, tuple[float, float]]) -> None:
    axes.fill_between(GRID, np.exp(p), color="#7d7d7d55", label="p")
    for name, fit in fits.items():
        axes.plot(GRID, np.exp(gaussian(*fit)), label=f"q of least {name}")
    axes.set(xlim=(-7, 7), xlabel="z", ylabel="density", title="One mixture, fitted both ways", ylim=(0, 0.85))
    axes.legend()
