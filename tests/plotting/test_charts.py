"""Charts: values where the axes say, the same bytes whatever the user's settings, legible on light and dark pages."""

import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vaeline.plotting import charts

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
