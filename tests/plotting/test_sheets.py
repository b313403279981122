"""The sheets of pictures: every pixel where it belongs, every word on the sheet, the same bytes every time."""

import io
import struct
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vaeline.errors import UserError
from vaeline.plotting import sheets
from vaeline.plotting.sheets import Pixels, Row, Sheet, Tile, grid, png, render, to_pixels, triangle, triangle_rows

HEADERS = ["original", "-3.0", "0.0", "3.0"]


def images(count: int, channels: int = 1, height: int = 28, width: int = 28, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def a_grid(channels: int = 1, height: int = 28, width: int = 28) -> Sheet:
    rows = [Row(images(4, channels, height, width, seed), f"z{seed}  KL {seed}.5 nats", seed == 2) for seed in range(3)]
    return grid("Latent traversals\nz from -3 to 3", rows, HEADERS)


def a_triangle(channels: int = 1, height: int = 28, width: int = 28) -> Sheet:
    return triangle("Mixtures", images(21, channels, height, width), images(3, channels, height, width, seed=9))


SHEETS = [
    layout(channels, height, width)
    for layout in (a_grid, a_triangle)
    for channels, height, width in [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 20, 90), (5, 13, 7), (2, 128, 100)]
]


def box(tile: Tile) -> tuple[int, int, int, int]:
    height, width = tile.pixels.shape[:2]
    return tile.left, tile.top, tile.left + width, tile.top + height


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_pixels_are_rounded_to_the_nearest_level_and_clipped() -> None:
    means = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 127.49 / 255, 1.0, 1.7])
    assert to_pixels(means).tolist() == [0, 0, 0, 1, 127, 255, 255]


def test_every_grey_level_survives_the_way_to_pixels() -> None:
    levels = np.arange(256)
    assert (to_pixels((levels / 255).astype(np.float32)) == levels).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        to_pixels(np.array([0.5, bad]))


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(28, 28, 2), (32, 32, 2), (8, 8, 7), (64, 64, 1), (300, 20, 1), (14, 28, 2), (4, 4, 14)],
)
def test_the_scale_is_whole_and_brings_an_image_near_56_pixels(height: int, width: int, scale: int) -> None:
    assert sheets.scale_for(height, width) == scale


def test_enlarging_repeats_every_pixel_exactly() -> None:
    small = images(2, 3, 8, 5)
    large = sheets.enlarge(small)
    assert large.shape == (2, 56, 35, 3)
    for y, x in [(0, 0), (55, 34), (6, 7), (7, 6), (30, 20)]:
        assert (large[:, y, x] == small[:, :, y // 7, x // 7]).all()
    for y, x in np.ndindex(8, 5):
        block = large[:, 7 * y : 7 * y + 7, 7 * x : 7 * x + 7]
        assert (block == small[:, None, None, :, y, x]).all()


@pytest.mark.parametrize("sheet", SHEETS)
def test_each_image_stands_unaltered_where_the_layout_says(sheet: Sheet) -> None:
    drawn = render(sheet)
    assert drawn.shape[:2] == (sheet.height, sheet.width)
    for tile in sheet.tiles:
        left, top, right, bottom = box(tile)
        assert (drawn[top:bottom, left:right] == tile.pixels).all()


@pytest.mark.parametrize("sheet", SHEETS)
def test_nothing_overlaps_and_nothing_is_cut_off(sheet: Sheet) -> None:
    boxes = [*map(box, sheet.tiles), *map(sheets._box, sheet.texts)]
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    for left, top, right, bottom in boxes:
        assert left >= sheets.MARGIN and top >= sheets.MARGIN
        assert right <= sheet.width - sheets.MARGIN and bottom <= sheet.height - sheets.MARGIN


@pytest.mark.parametrize("sheet", SHEETS)
def test_words_are_drawn_dark_on_white_inside_their_boxes(sheet: Sheet) -> None:
    drawn = render(sheet)
    assert (drawn[: sheets.MARGIN] == 255).all() and (drawn[:, -sheets.MARGIN + 1 :] == 255).all()
    for text in sheet.texts:
        left, top, right, bottom = sheets._box(text)
        assert drawn[top:bottom, left:right].min() < 100
        drawn[top:bottom, left:right] = 255
    for tile in sheet.tiles:
        left, top, right, bottom = box(tile)
        drawn[top - 1 : bottom + 1, left - 1 : right + 1] = 255
    assert (drawn == 255).all()


def test_a_grid_keeps_the_order_of_rows_and_columns() -> None:
    rows = [images(4, seed=seed) for seed in range(3)]
    tiles = a_grid().tiles
    for i, tile in enumerate(tiles):
        assert (tile.pixels == sheets.enlarge(rows[i // 4])[i % 4]).all()
    lefts = [tile.left for tile in tiles]
    tops = [tile.top for tile in tiles]
    assert lefts[:4] == lefts[4:8] == lefts[8:] == sorted(set(lefts))
    assert tops == sorted(tops) and len(set(tops)) == 3
    assert lefts[1] - lefts[0] == 56 + sheets.GAP
    assert tops[4] - tops[0] == 56 + sheets.GAP
    assert tops[8] - tops[4] == 56 + sheets.GROUP_GAP


def test_a_last_row_may_be_shorter() -> None:
    sheet = grid("Short", [Row(images(5)), Row(images(2, seed=1))])
    assert [tile.left for tile in sheet.tiles[5:]] == [tile.left for tile in sheet.tiles[:2]]


def test_headers_stand_in_the_middle_of_their_columns_and_labels_of_their_rows() -> None:
    sheet = a_grid()
    headers = [text for text in sheet.texts if text.words in HEADERS]
    assert [text.x for text in headers] == [tile.left + 28 for tile in sheet.tiles[:4]]
    labels = [text for text in sheet.texts if text.words.startswith("z") and "KL" in text.words]
    assert [text.y for text in labels] == [tile.top + 28 for tile in sheet.tiles[::4]]


def test_the_triangle_puts_the_three_originals_beyond_its_own_corners() -> None:
    sheet = a_triangle()
    *inner, top, left, right = sheet.tiles
    apex, bottom_left, bottom_right = inner[0], inner[15], inner[20]
    assert top.left == apex.left and top.top + 56 + sheets.GROUP_GAP == apex.top
    assert left.top == bottom_left.top and left.left + 56 + sheets.GROUP_GAP == bottom_left.left
    assert right.top == bottom_right.top and bottom_right.left + 56 + sheets.GROUP_GAP == right.left
    originals = sheets.enlarge(images(3, seed=9))
    for tile, image in zip((top, left, right), originals, strict=True):
        assert (tile.pixels == image).all()


def test_the_rows_of_a_triangle_are_centred_below_each_other() -> None:
    inner = a_triangle().tiles[:21]
    centre = inner[0].left
    for row in range(6):
        lefts = [tile.left for tile, place in zip(inner, triangle_rows(6), strict=True) if place[0] == row]
        assert len(lefts) == row + 1
        assert abs((lefts[0] + lefts[-1]) / 2 - centre) <= 1


def test_a_triangle_of_a_wrong_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="20 images"):
        triangle("Mixtures", images(20), images(3))


@pytest.mark.parametrize(
    ("channels", "note"),
    [(1, ""), (3, ""), (2, "first channel of 2"), (4, "first 3 channels of 4, as RGB")],
)
def test_channels_that_cannot_be_shown_are_named(channels: int, note: str) -> None:
    words = [text.words for text in grid("Title", [Row(images(2, channels))]).texts]
    assert words == ["Title", note] if note else words == ["Title"]


def test_grey_images_make_a_grey_sheet_and_colours_a_coloured_one() -> None:
    assert render(a_grid(1)).ndim == 2
    assert render(a_grid(2)).ndim == 2
    assert render(a_grid(3)).shape[2] == 3


def test_a_png_holds_the_exact_pixels_and_no_metadata() -> None:
    for channels in (1, 3):
        drawn = render(a_grid(channels))
        content = png(drawn)
        with Image.open(io.BytesIO(content)) as image:
            assert not image.info
            assert (np.array(image) == drawn).all()
        assert chunk_names(content) == {b"IHDR", b"IDAT", b"IEND"}


def chunk_names(content: bytes) -> set[bytes]:
    names, at = set(), 8
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        names.add(name)
        at += 12 + length
    return names


def test_the_same_images_give_the_same_bytes() -> None:
    assert png(render(a_triangle(3))) == png(render(a_triangle(3)))
