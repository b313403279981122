"""The geometry of the run report's charts; the template draws them as SVG, in colours that follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26  # margins
MOST_BARS, MOST_LABELS, MOST_MARKERS = 128, 20, 40
EARLY = 0.1  # of the epochs: what they alone reach is cut off, else nobody sees what follows

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: tuple[tuple[float, float], ...]  # in the picture

    @property
    def path(self) -> str:
        """As SVG's polyline takes it."""
        return " ".join(f"{x},{y}" for x, y in self.points)

    @property
    def markers(self) -> tuple[tuple[float, float], ...]:
        """Where there are few points, each is shown."""
        return self.points if len(self.points) <= MOST_MARKERS else ()


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs."""

    title: str
    unit: str
    told: str  # for those who do not see it
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    cut: bool  # whether early epochs lie outside
    mark: Tick | None = None


@dataclass(frozen=True)
class Bar:
    """One bar; y counts downwards."""

    x: float
    y: float
    width: float
    height: float
    label: str
    told: str


@dataclass(frozen=True)
class Bars:
    """Non-negative numbers by falling size."""

    told: str
    bars: tuple[Bar, ...]
    y_ticks: tuple[Tick, ...]
    left_out: int
    labelled: bool


def curves(title: str, unit: str, series: dict[str, Points], best: int | None = None) -> Chart | None:
    """A chart of (epoch, value) by name, the kept epoch marked; None where nothing is finite."""
    known = {name: [(x, y) for x, y in points if y is not None and math.isfinite(y)] for name, points in series.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return None
    epochs = [x for points in known.values() for x, _ in points]
    first, last = min(epochs), max(epochs)
    from_epoch = first + math.floor(EARLY * (last - first))
    shown = [y for points in known.values() for x, y in points if x >= from_epoch]
    ticks = nice_ticks(min(shown), max(shown))
    low, high = ticks[0], ticks[-1]

    def x_of(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (epoch - first) / ((last - first) or 1), 1)

    def y_of(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1), 1)

    lines = tuple(Line(name, tuple((x_of(x), y_of(y)) for x, y in points)) for name, points in known.items())
    whole = sorted({round(x) for x in nice_ticks(first, last) if first <= x <= last})
    return Chart(
        title,
        unit,
        "; ".join(f"{name}: from {points[0][1]:.4g} to {points[-1][1]:.4g} {unit}" for name, points in known.items()),
        lines,
        tuple(Tick(x_of(x), str(x)) for x in whole),
        tuple(Tick(y_of(y), label) for y, label in zip(ticks, labels(ticks), strict=True)),
        any(y < low or y > high for points in known.values() for _, y in points),
        None if best is None else Tick(x_of(best), f"kept: epoch {best}"),
    )


def bars(values: Sequence[tuple[str, float]], unit: str) -> Bars | None:
    """The largest MOST_BARS of named values, as bars; None where there are none."""
    finite = [(name, value) for name, value in values if math.isfinite(value)]
    ordered = sorted(finite, key=lambda pair: -pair[1])[:MOST_BARS]
    if not ordered:
        return None
    ticks = nice_ticks(0.0, max(ordered[0][1], 1e-9))
    top, room = ticks[-1], (WIDTH - LEFT - RIGHT) / len(ordered)
    drawn = []
    for i, (name, value) in enumerate(ordered):
        height = (HEIGHT - TOP - BOTTOM) * max(value, 0.0) / top
        x, width = LEFT + room * (i + 0.1), min(room * 0.8, 40.0)
        told = f"{name}: {value:.4g} {unit}"
        y = HEIGHT - BOTTOM - height
        drawn.append(Bar(round(x, 1), round(y, 1), round(width, 2), round(height, 1), name, told))
    y_ticks = tuple(
        Tick(round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top, 1), label)
        for y, label in zip(ticks, labels(ticks), strict=True)
    )
    told = f"the largest {drawn[0].told}; the smallest shown {drawn[-1].told}"
    return Bars(told, tuple(drawn), y_ticks, len(finite) - len(ordered), len(ordered) <= MOST_LABELS)


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers, a step of 1, 2 or 5 times a power of ten apart, from at or below `low` to at or above `high`."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * i for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def labels(ticks: Sequence[float]) -> list[str]:
    """As many digits as tell neighbours apart."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:.{digits}f}" if digits <= 6 else f"{tick:.2g}" for tick in (t + 0.0 for t in ticks)]
