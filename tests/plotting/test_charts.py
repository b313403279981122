"""Charts and sheets: values and pixels where they belong, legible, the same bytes every time."""

import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vaeline.errors import UserError
from vaeline.plotting import charts
from vaeline.plotting.charts import MARGIN, Pixels, Sheet, enlarge, png, render, to_pixels

RISING = {"low": [(1, 0.0), (2, 5.0), (3, 10.0)], "high": [(1, 20.0), (2, math.nan), (3, 30.0)], "none": [(1, None)]}


def drawn_axes(panel):
    axes = Figure().subplots()
    panel(axes)
    axes.figure.draw_without_rendering()
    return axes


def pixels(picture: charts.Picture) -> np.ndarray:
    with Image.open(io.BytesIO(picture.png)) as image:
        return np.array(image.convert("RGBA"))


def test_lines_lie_where_their_values_are_and_the_legend_names_them():
    """Mistake 19."""
    axes = drawn_axes(lambda axes: charts.lines(axes, RISING, mark=2))
    low, high, mark = axes.get_lines()
    assert (list(low.get_xdata()), list(low.get_ydata())) == ([1, 2, 3], [0, 5, 10])
    assert (list(high.get_xdata()), list(high.get_ydata())) == ([1, 3], [20, 30])
    assert list(mark.get_xdata()) == [2, 2]
    legend = axes.get_legend()
    shown = {text.get_text(): line.get_color() for text, line in zip(legend.texts, legend.get_lines(), strict=True)}
    assert shown == {"low": low.get_color(), "high": high.get_color()}
    bottom, top = axes.get_ylim()
    assert bottom < 0
    assert top > 30


def test_early_values_do_not_flatten_the_rest_and_a_constant_curve_has_an_axis():
    values = [(i, -1000.0 if i == 1 else -100.0 - 1 / i) for i in range(1, 31)]
    low, high = drawn_axes(lambda axes: charts.lines(axes, {"a": values})).get_ylim()
    assert -102 < low < high < -99
    low, high = drawn_axes(lambda axes: charts.lines(axes, {"a": [(1, 0.0), (2, 0.0)]})).get_ylim()
    assert low < 0 < high


def test_bars_stand_by_falling_size_each_above_its_name():
    """Mistake 19."""
    values = {"z0": 1.0, "z1": 3.0, "z2": 2.0}
    axes = drawn_axes(lambda axes: charts.bars(axes, values))
    assert [bar.get_height() for bar in axes.patches] == [3, 2, 1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["z1", "z2", "z0"]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx(list(axes.get_xticks()))
    many = drawn_axes(lambda axes: charts.bars(axes, {f"z{i}": float(i) for i in range(200)}))
    assert len(many.patches) == charts.MOST_BARS
    assert not many.get_xticklabels()


def test_a_chart_is_the_same_bytes_whatever_the_users_settings():
    import matplotlib as mpl

    def draw() -> bytes:
        return charts.chart("line", "", lambda axes: axes.plot([1, 2], [3, 4], label="σ²")).png

    first = draw()
    with mpl.rc_context({"font.size": 22, "axes.facecolor": "red", "savefig.dpi": 30}):
        assert draw() == first
        assert mpl.rcParams["font.size"] == 22
    assert b"Software" not in first
    assert b"Date" not in first


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#14171b"])
def test_charts_are_transparent_and_legible_on_light_and_dark_pages(page: str):
    image = pixels(charts.chart("c", "", lambda axes: charts.lines(axes, RISING)))
    assert image[0, 0, 3] == 0
    for colour, least in [(charts.INK, 4.0), *((colour, 3.0) for colour in charts.COLOURS)]:
        bright, dark = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= least, colour


def images(count: int, channels: int = 1, height: int = 28, width: int = 28, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def a_sheet(*shape: int) -> Sheet:
    rows = [(f"z{seed}  KL {seed}.5 nats", images(4, *shape, seed=seed)) for seed in range(4)]
    return Sheet("Latent traversals\nz from -3 to 3", rows, ["original", "-3.0", "0.0", "3.0"], group=2)


def place(drawn: Pixels, image: Pixels) -> tuple[int, int]:
    """(x, y) of the one place at which the enlarged image stands."""
    large = enlarge(image)
    windows = np.lib.stride_tricks.sliding_window_view(drawn, large.shape[1], axis=1)  # [H, x, (3,) w]
    first = large[0] if large.ndim == 2 else large[0].T
    matches = np.argwhere((windows == first).reshape(*windows.shape[:2], -1).all(2))
    found = [(x, y) for y, x in matches if (drawn[y : y + large.shape[0], x : x + large.shape[1]] == large).all()]
    assert len(found) == 1
    return int(found[0][0]), int(found[0][1])


def places(sheet: Sheet) -> list[list[tuple[int, int]]]:
    drawn = render(sheet)
    return [[place(drawn, image) for image in row] for _, row in sheet.rows]


def test_pixels_are_rounded_to_the_nearest_level_and_clipped_and_those_not_finite_refused():
    means = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 127.49 / 255, 1.0, 1.7])
    assert to_pixels(means).tolist() == [0, 0, 0, 1, 127, 255, 255]
    levels = np.arange(256)
    assert (to_pixels((levels / 255).astype(np.float32)) == levels).all()
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match="not finite"):
            to_pixels(np.array([0.5, bad]))


@pytest.mark.parametrize(("height", "width", "scale"), [(28, 28, 2), (8, 8, 7), (300, 20, 1), (14, 28, 2), (4, 4, 14)])
def test_enlarging_repeats_every_pixel_a_whole_number_of_times(height: int, width: int, scale: int):
    (small,) = images(1, 3, height, width)
    large = enlarge(small)
    assert large.shape == (scale * height, scale * width, 3)
    for dy, dx in np.ndindex(scale, scale):
        assert (large[dy::scale, dx::scale] == small.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 20, 90), (5, 13, 7), (2, 128, 100)])
def test_each_image_stands_unaltered_in_its_row_and_column_inside_white_margins(shape: tuple[int, int, int]):
    sheet = a_sheet(*shape)
    drawn, found = render(sheet), np.array(places(sheet))
    x, y = found[..., 0], found[..., 1]
    height, width = enlarge(sheet.rows[0][1][0]).shape[:2]
    assert drawn.ndim == (3 if shape[0] >= 3 else 2)
    assert (x == x[0]).all()
    assert (y == y[:, :1]).all()
    across, down = np.diff(x[0]), np.diff(y[:, 0])
    assert (across >= width + 2).all()
    assert (across == across[0]).all()
    assert down[0] == down[2] == max(height, 14) + 4
    assert down[1] > down[0], "groups stand apart"
    for strip in (drawn[:MARGIN], drawn[-MARGIN + 1 :], drawn[:, : MARGIN - 1], drawn[:, -MARGIN + 1 :]):
        assert (strip == 255).all()


def test_labels_stand_left_of_their_rows_and_headers_above_their_columns():
    sheet = a_sheet()
    drawn, found = render(sheet), np.array(places(sheet))
    for x, y in found[:, 0]:
        assert drawn[y + 20 : y + 36, : x - 1].min() < 100, "in the row's middle"
    for x, y in found[0]:
        assert drawn[y - 24 : y - 2, x + 8 : x + 48].min() < 100
    bare = Sheet("Latent traversals\nz from -3 to 3", [("", images(4)), ("", images(2, seed=1))])
    assert render(bare).shape[1] < drawn.shape[1]
    first, shorter = places(bare)
    assert [x for x, _ in first[:2]] == [x for x, _ in shorter]


def test_a_long_title_and_channels_that_cannot_be_shown_widen_and_heighten_the_sheet():
    one, long = (render(Sheet(title, [("", images(2))])) for title in ("Title", "Title " * 20))
    assert long.shape[1] > one.shape[1] + 200
    shown, hidden = (render(Sheet("Title", [("", images(2, channels, 28, 28))])) for channels in (3, 4))
    assert hidden.shape[0] == shown.shape[0] + 20, "a line names the channels that are shown"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_exact_pixels_no_metadata_and_the_same_bytes(channels: int):
    drawn = render(a_sheet(channels, 28, 28))
    content = png(drawn)
    assert png(render(a_sheet(channels, 28, 28))) == content
    with Image.open(io.BytesIO(content)) as image:
        assert not image.info
        assert (np.array(image) == drawn).all()
