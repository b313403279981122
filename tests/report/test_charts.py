"""The run report's charts and the claims read back: values in, places and words out."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report import charts
from pipeline.report.claims import read_claims
from vaeline.plotting.charts import Picture
from vaeline.theory.page import Claim, Table, document


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="png")
    return buffer.getvalue()


def test_the_theorys_claims_come_back_as_they_were(tmp_path: Path):
    table = Table(("a & b", "c"), (("<1>", ""), ("2", "3")))
    picture = Picture("", "A picture <of> dots", png())
    claims = (
        Claim("one", "First", "x < y\n  z", ("Some words.", "More & more."), {}, table),
        Claim("two", "2nd", "e", (), {}, None, (picture, picture)),
    )
    path = tmp_path / "theory.html"
    path.write_text(document("T", "I", claims))
    assert read_claims(path) == claims
    assert read_claims(tmp_path / "none.html") == ()


@pytest.mark.parametrize(("low", "high"), [(-243.7, -241.2), (0, 1e-7), (-5, -5), (0, 0), (1e6, 3e6), (-1e-3, 12)])
def test_ticks_are_round_few_apart_and_around_the_values(low: float, high: float):
    ticks = charts.nice_ticks(low, high)
    steps = np.diff(ticks)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert np.allclose(steps, steps[0])
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0000001)), 6) in (1, 2, 5)
    assert len(set(charts.labels(ticks))) == len(ticks)


def test_curves_lie_where_their_values_are():
    chart = charts.curves("t", "u", {"a": [(1, 0.0), (2, 5.0), (3, 10.0)], "b": [(1, math.nan)]})
    assert chart is not None
    (line,) = chart.lines
    (x1, y1), (x2, y2), (x3, y3) = line.points
    assert (x1, x3) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert x2 == pytest.approx((x1 + x3) / 2, abs=0.1)
    assert y2 == pytest.approx((y1 + y3) / 2, abs=0.1)
    at = {tick.label: tick.at for tick in chart.y_ticks}
    assert (at["0"], at["10"]) == (y1, y3)
    assert charts.curves("t", "u", {"a": [(1, None)]}) is None


def test_early_epochs_do_not_flatten_the_rest():
    values = [(i, -1000.0 if i == 1 else -100.0 - 1 / i) for i in range(1, 31)]
    chart = charts.curves("t", "u", {"a": values})
    assert chart is not None
    assert chart.cut
    heights = [y for x, y in chart.lines[0].points[5:]]
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for y in heights)
    assert max(heights) - min(heights) > 20
