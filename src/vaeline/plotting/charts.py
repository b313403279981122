"""Charts and labelled sheets of images, the same bytes every time.

Charts, by matplotlib, are transparent, in colours that read on light and dark pages. Sheets show images, uint8
[N, C, H, W], on white, all enlarged by one whole factor, so that a pixel of the model is a sharp square.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vaeline.errors import UserError
from vaeline.io.npy import Pixels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """A PNG file and what is to be seen on it."""

    name: str  # of the file, without its ending
    caption: str
    png: bytes
    wide: bool = False  # a sheet, whose type is read at its own size


Points = Sequence[tuple[float, float | None]]  # x, y; None: not known

SIZE = (4.0, 3.0)  # inches: 600 pixels, to be read on a telephone too
INK = "#7d7d7d"  # words, axes, reference lines: contrast above 4 on white and on #14171b
COLOURS = ("#1f77b4", "#d2600c", "#2ca02c", "#cf4446", "#8f68c9", "#9a6152", "#c75aa8", "#7f7f7f")
MOST_BARS, MOST_LABELS, MOST_MARKERS = 128, 20, 40
EARLY = 0.1  # of the x range: values that only it reaches lie beyond the axis, so that the rest can be seen
SIDE = 56  # pixels of a sheet; an enlarged image is about this large
MARGIN, GAP = 14, 4  # around a sheet; between its images
TYPE = 14  # pixels, the size of type on a sheet
BLACK, PALE = 32, 208  # grey levels of words and of the thin line around an image
INKED = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "grid.color")
STYLE: Any = dict.fromkeys(INKED, INK) | {
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def charts(
    name: str, captions: Sequence[str], draw: Callable[..., object], size: tuple[float, float] = SIZE
) -> tuple[Picture, ...]:
    """A chart for each caption, whatever the user's matplotlib settings are; `draw` gets a matplotlib.axes.Axes each.

    Apart, so that a page can place them side by side or below one another.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figures = [Figure(figsize=size, layout="constrained") for _ in captions]
        draw(*(figure.subplots() for figure in figures))
        pictures = []
        for n, (caption, figure) in enumerate(zip(captions, figures, strict=True), 1):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
            pictures.append(Picture(f"{name}_{n}" if len(figures) > 1 else name, caption, buffer.getvalue()))
    return tuple(pictures)


def chart(name: str, caption: str, draw: Callable[..., object], size: tuple[float, float] = SIZE) -> Picture:
    """One chart."""
    return charts(name, [caption], draw, size)[0]


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


@dataclass(frozen=True)
class Sheet:
    """Labelled rows of images below a title of some lines, headers above the columns.

    More space stands after every `group` of rows where that is more than one. `centred`: shorter rows are.
    """

    title: str
    rows: Sequence[tuple[str, Pixels]]
    headers: Sequence[str] = ()
    group: int = 1
    centred: bool = False


def to_pixels(means: npt.NDArray[np.floating[Any]]) -> Pixels:
    """Expected pixels on [0, 1] to the nearest of the 256 levels; raises UserError where one is not finite."""
    if not np.isfinite(means).all():
        raise UserError("the model decodes to pixels that are not finite; train it again")
    return np.asarray(np.rint(np.clip(means, 0.0, 1.0) * 255.0), np.uint8)


def image_rows(
    name: str, caption: str, title: str, rows: Sequence[tuple[str, "Tensor"]], headers: Sequence[str] = ()
) -> Picture:
    """A sheet of labelled rows of expected pixels on [0, 1], [N, C, H, W] each."""
    drawn = [(label, to_pixels(images.cpu().numpy())) for label, images in rows]
    return Picture(name, caption, png(render(Sheet(title, drawn, headers))), wide=True)


def enlarge(image: Pixels) -> Pixels:
    """[C, H, W] to [h, w] (grey) or [h, w, 3], every pixel repeated both ways until the longer side is near SIDE."""
    scale = max(1, round(SIDE / max(image.shape[1:])))
    large = image.repeat(scale, axis=1).repeat(scale, axis=2)
    return large[0] if len(image) < 3 else np.ascontiguousarray(large[:3].transpose(1, 2, 0))


def render(sheet: Sheet) -> Pixels:
    """The drawn sheet: [height, width] where its images are grey, else [height, width, 3]."""
    font = ImageFont.load_default(TYPE)
    rows = [[enlarge(image) for image in images] for _, images in sheet.rows]
    labels, (height, width) = [label for label, _ in sheet.rows], rows[0][0].shape[:2]
    lines, channels = sheet.title.splitlines(), sheet.rows[0][1].shape[1]
    if channels not in (1, 3):
        lines.append(f"first channel of {channels}" if channels == 2 else f"first 3 channels of {channels}, as RGB")
    left = MARGIN + max(math.ceil(font.getlength(f"{label}  ")) if label else 0 for label in labels)
    across = max([width, *(math.ceil(font.getlength(header)) for header in sheet.headers)]) + GAP
    down = max(height, TYPE if any(labels) else 0) + GAP
    top = MARGIN + (len(lines) + bool(sheet.headers)) * (TYPE + 6) + GAP
    inset = (across - GAP - width) // 2  # of an image in its column
    rises = [top + round((i + (i // sheet.group * 0.2 if sheet.group > 1 else 0)) * down) for i in range(len(rows))]
    longest = max(map(len, rows))
    ends = [left + (longest - 1) * across + inset + width, left + len(sheet.headers) * across]
    right = max(ends + [MARGIN + math.ceil(font.getlength(line)) for line in lines])
    mode, ink, pale = ("RGB", (BLACK,) * 3, (PALE,) * 3) if channels >= 3 else ("L", BLACK, PALE)
    drawn = Image.new(mode, (right + MARGIN, rises[-1] + height + MARGIN), "white")
    draw = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + i * (TYPE + 6)), line, fill=ink, font=font)
    for i, header in enumerate(sheet.headers):
        draw.text((left + i * across + (across - GAP) // 2, top - GAP), header, fill=ink, font=font, anchor="md")
    for y, label, images in zip(rises, labels, rows, strict=True):
        draw.text((MARGIN, y + height // 2), label, fill=ink, font=font, anchor="lm")
        start = left + inset + ((longest - len(images)) * across // 2 if sheet.centred else 0)
        for x, image in zip(range(start, right, across), images, strict=False):
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=pale)
            drawn.paste(Image.fromarray(image), (x, y))
    return np.array(drawn)


def png(pixels: Pixels) -> bytes:
    """[H, W] or [H, W, 3] as a PNG file without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
