"""The pictures of a sweep: parallel coordinates of what was varied, and rate against distortion."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.sweep.ranking import described, ranked
from pipeline.sweep.space import Range, varied
from pipeline.sweep.state import Sweep, Trial, label, show

LISTED = 30  # trials named beside the rate-distortion picture, the best first
RULES: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Scale:
    """One upright axis: where each trial stands on [0, 1], and what is written beside it."""

    title: str
    positions: list[float]
    ticks: list[tuple[float, str]]


def pictures(sweep: Sweep) -> dict[str, bytes]:
    """PNG by file name; those for which two scored trials have what they show."""
    scored = [trial for trial in ranked(sweep) if sweep.score(trial) is not None]
    drawn = {}
    if len(scored) > 1:
        drawn["parallel_coordinates.png"] = parallel_coordinates(sweep, scored)
    if len(points := [t for t in scored if {"test.kl", "test.reconstruction"} <= t.metrics.keys()]) > 1:
        drawn["rate_distortion.png"] = rate_distortion(sweep, points)
    return drawn


def parallel_coordinates(sweep: Sweep, trials: Sequence[Trial]) -> bytes:
    """A line a trial through its values and its metric, coloured by the metric; the best is thick."""
    scales = _scales(sweep, trials)

    def draw(axes: Any) -> None:
        from matplotlib import colormaps

        colours = colormaps["viridis"]
        for index in reversed(range(len(trials))):
            heights = [scale.positions[index] for scale in scales]
            goodness = heights[-1] if sweep.request.maximise else 1 - heights[-1]
            width, opacity = (3.0, 1.0) if index == 0 else (1.4, 0.75)
            axes.plot(heights, color=colours(0.95 * goodness), linewidth=width, alpha=opacity, solid_capstyle="round")
        for place, scale in enumerate(scales):
            axes.axvline(place, color="#888888", linewidth=0.8)
            for height, text in scale.ticks:
                axes.annotate(
                    text,
                    (place, height),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
                )
        axes.set_xticks(range(len(scales)), [scale.title for scale in scales])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(scales) - 0.75)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(f"{sweep.name}: the thick line is the best of {len(trials)} by {sweep.request.metric}")

    return _png(draw, width=2.2 * len(scales) + 1.0, height=4.2)


def rate_distortion(sweep: Sweep, trials: Sequence[Trial]) -> bytes:
    """Rate KL against distortion -E_q[log p(x|z)], nats per test image (Alemi et al. 2018, Fixing a Broken ELBO).

    Both add up to -ELBO, so that points on one falling diagonal are equally good.
    """
    rates = [trial.metrics["test.kl"] for trial in trials]
    distortions = [-trial.metrics["test.reconstruction"] for trial in trials]

    def draw(axes: Any) -> None:
        from matplotlib import colormaps

        _diagonals(axes, rates, distortions)
        colours = [colormaps["viridis"](0.95 * (1 - rank / len(trials))) for rank in range(len(trials))]
        axes.scatter(rates, distortions, s=150, c=colours, edgecolors="white", zorder=3)
        for rank, point in enumerate(zip(rates, distortions, strict=True), 1):
            tint = "black" if rank - 1 < len(trials) * 0.35 else "white"
            axes.annotate(str(rank), point, ha="center", va="center", fontsize=7.5, color=tint, zorder=4)
        names = [f"{rank:>2}  {described(sweep, trial)}" for rank, trial in enumerate(trials[:LISTED], 1)]
        names += [f"and {len(trials) - LISTED} more"] if len(trials) > LISTED else []
        axes.text(1.03, 1.0, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.5)
        axes.set_xlabel("rate: KL, nats per test image")
        axes.set_ylabel("distortion: $-$reconstruction, nats per test image")
        axes.set_title(f"{sweep.name}: numbered by rank; grey lines join equal ELBO")

    return _png(draw, width=6.2, height=4.6)


def _diagonals(axes: Any, rates: Sequence[float], distortions: Sequence[float]) -> None:
    """Lines of equal ELBO through the picture."""
    left, right, low, high = (*_widened(rates), *_widened(distortions))
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    for step in range(9):
        total = left + low + (right - left + high - low) * step / 8
        axes.plot([left, right], [total - left, total - right], color="#dddddd", linewidth=0.8, zorder=1)


def _widened(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.12 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _scales(sweep: Sweep, trials: Sequence[Trial]) -> list[Scale]:
    """One a varied key, and the metric's last."""
    keys = varied(sweep.axes)
    logarithmic = {axis.key for axis in sweep.axes if isinstance(axis, Range) and axis.log}
    scales = [_scale(label(key, keys), [trial.values[key] for trial in trials], key in logarithmic) for key in keys]
    metric = sweep.request.metric
    return [*scales, _numeric(metric, [trial.metrics[metric] for trial in trials], logarithmic=False)]


def _scale(title: str, values: list[Any], logarithmic: bool) -> Scale:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        kinds = {json.dumps(value): show(value) for value in values}
        step = 1 / max(1, len(kinds) - 1)
        heights = {kind: index * step for index, kind in enumerate(kinds)}
        return Scale(title, [heights[json.dumps(v)] for v in values], [(heights[kind], kinds[kind]) for kind in kinds])
    wide = min(values) > 0 and max(values) / min(values) >= 8
    return _numeric(title, values, logarithmic=logarithmic or wide)


def _numeric(title: str, values: list[float], *, logarithmic: bool) -> Scale:
    change: Callable[[float], float] = math.log if logarithmic else float
    low, high = change(min(values)), change(max(values))
    reach = high - low or 1.0

    def height(value: float) -> float:
        return (change(value) - low) / reach if high > low else 0.5

    different = sorted(set(values))
    if len(different) > 6:
        between = [low + reach * part / 4 for part in range(5)]
        different = [math.exp(point) for point in between] if logarithmic else between
    return Scale(title, [height(value) for value in values], [(height(value), show(value)) for value in different])


def _png(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """Draw on one pair of axes, whatever the user's matplotlib settings are."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RULES)
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
