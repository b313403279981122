"""Pictures of the page: charts by matplotlib, sheets of images; the same bytes every time."""

import io
from collections.abc import Callable, Sequence
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


Panel = Callable[[Any], None]  # draws on a matplotlib.axes.Axes

PANEL_WIDTH, HEIGHT = 4.6, 3.5  # inches
RULES: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "vaeline",
}


def chart(name: str, caption: str, *panels: Panel) -> Picture:
    """Panels side by side, each drawn by its function, whatever the user's matplotlib settings are."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RULES)
        figure = Figure(figsize=(PANEL_WIDTH * len(panels), HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, axes in zip(panels, np.ravel(figure.subplots(1, len(panels))), strict=True):
            panel(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(name, caption, buffer.getvalue())


def sheet(name: str, caption: str, title: str, rows: Sequence[tuple[str, "Tensor"]]) -> Picture:
    """Labelled rows of images, expected pixels on [0, 1], [N, C, H, W] each."""
    drawn = [sheets.Row(sheets.to_pixels(images.cpu().numpy()), label) for label, images in rows]
    return Picture(name, caption, sheets.png(sheets.render(sheets.grid(title, drawn))))
