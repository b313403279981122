"""Image sheets: every pixel where it belongs, no word cut off, the same bytes every time."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from vaeline.errors import UserError
from vaeline.plotting.charts import MARGIN, Pixels, Sheet, enlarge, png, render, to_pixels

HEADERS = ["original", "-3.0", "0.0", "3.0"]


def images(count: int, channels: int = 1, height: int = 28, width: int = 28, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def a_sheet(*shape: int) -> Sheet:
    rows = [(f"z{seed}  KL {seed}.5 nats", images(4, *shape, seed=seed)) for seed in range(4)]
    return Sheet("Latent traversals\nz from -3 to 3", rows, HEADERS, group=2)


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
    names, at = set(), 8
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        names.add(name)
        at += 12 + length
    assert names == {b"IHDR", b"IDAT", b"IEND"}
