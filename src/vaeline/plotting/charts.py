"""Charts by matplotlib: transparent, in colours that read on light and dark pages, the same bytes every time."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vaeline.plotting import sheets

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """A PNG file and what is to be seen on it."""

    name: str  # of the file, without its ending
    caption: str
    png: bytes


Points = Sequence[tuple[float, float | None]]  # x, y; None: not known

SIZE = (4.6, 3.5)  # inches
INK = "#7d7d7d"  # words, axes, reference lines: contrast above 4 on white and on #14171b
COLOURS = ("#1f77b4", "#d2600c", "#2ca02c", "#cf4446", "#8f68c9", "#9a6152", "#c75aa8", "#7f7f7f")
MOST_BARS, MOST_LABELS, MOST_MARKERS = 128, 20, 40
EARLY = 0.1  # of the x range: values that only it reaches lie beyond the axis, so that the rest can be seen
STYLE: Any = {
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def chart(
    name: str, caption: str, draw: Callable[..., object], panels: int = 1, size: tuple[float, float] = SIZE
) -> Picture:
    """Panels side by side, whatever the user's matplotlib settings are; `draw` gets a matplotlib.axes.Axes for each."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        draw(*np.ravel(figure.subplots(1, panels)))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return Picture(name, caption, buffer.getvalue())


def image_rows(name: str, caption: str, title: str, rows: Sequence[tuple[str, "Tensor"]]) -> Picture:
    """A sheet of labelled rows of expected pixels on [0, 1], [N, C, H, W] each."""
    drawn = [(label, sheets.to_pixels(images.cpu().numpy())) for label, images in rows]
    return Picture(name, caption, sheets.png(sheets.render(sheets.grid(title, drawn))))


def known(series: Mapping[str, Points]) -> dict[str, list[tuple[float, float]]]:
    """The finite points of each series that has some."""
    found = {name: [(x, y) for x, y in points if y is not None and math.isfinite(y)] for name, points in series.items()}
    return {name: points for name, points in found.items() if points}


def lines(axes: Any, series: Mapping[str, Points], mark: float | None = None) -> None:
    """A line for each named series over whole x, `mark` as a dashed line; see EARLY for the y axis."""
    shown = known(series)
    for name, points in shown.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="." if len(x) <= MOST_MARKERS else "", label=name)
    if mark is not None:
        axes.axvline(mark, color=INK, linestyle="--", linewidth=1)
    places = [x for points in shown.values() for x, _ in points]
    start = min(places) + math.floor(EARLY * (max(places) - min(places)))
    late = [y for points in shown.values() for x, y in points if x >= start]
    margin = 0.05 * (max(late) - min(late)) or 0.05 * abs(late[0]) or 1.0
    axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(shown) > 1:
        axes.legend()


def bars(axes: Any, values: Mapping[str, float]) -> None:
    """The largest MOST_BARS of named values, none negative, by falling size; names below where they are few."""
    ordered = dict(sorted(values.items(), key=lambda pair: -pair[1])[:MOST_BARS])
    axes.bar(range(len(ordered)), list(ordered.values()))
    labels = ordered if len(ordered) <= MOST_LABELS else ()
    axes.set_xticks(range(len(labels)), list(labels))
    axes.grid(visible=False, axis="x")
