"""Labelled sheets of images: pixels exactly repeated, on white, the same bytes every time.

A layout (`grid`, `triangle`) says where every image and every word goes, as a `Sheet`; `render` draws it; `png`
encodes it. Sizes are in pixels of the sheet. Images are uint8 [N, C, H, W] and enlarged by one whole factor, so that a
pixel of the model is a sharp square. Words are set in the font that Pillow brings along.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vaeline.errors import UserError

Pixels = npt.NDArray[np.uint8]

SIDE = 56  # an image is about this large
MARGIN = 14
GAP = 4  # between images
GROUP_GAP = 14  # between groups of images, and between words and images
TITLE, LABEL = 16, 13  # sizes of type
INK, PALE = 32, 208  # words; the thin line around an image


@dataclass(frozen=True)
class Tile:
    """One enlarged image, its top left pixel at (left, top)."""

    left: int
    top: int
    pixels: Pixels  # [h, w] or [h, w, 3]


@dataclass(frozen=True)
class Text:
    """One line of words; `anchor` is Pillow's: which point of the line stands at (x, y)."""

    x: int
    y: int
    words: str
    anchor: str
    size: int = LABEL


@dataclass(frozen=True)
class Sheet:
    """Where everything goes on a sheet of `width` x `height` pixels."""

    width: int
    height: int
    tiles: tuple[Tile, ...]
    texts: tuple[Text, ...]


@dataclass(frozen=True)
class Row:
    """A row of a grid; `new_group` sets it apart from the row above."""

    images: Pixels  # [N, C, H, W]
    label: str = ""
    new_group: bool = False


def to_pixels(means: npt.NDArray[np.floating[Any]]) -> Pixels:
    """Expected pixels on [0, 1] to the nearest of the 256 levels; raises UserError where one is not finite."""
    if not np.isfinite(means).all():
        raise UserError("the model decodes to pixels that are not finite; train it again")
    levels: Pixels = np.rint(np.clip(means, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def scale_for(height: int, width: int) -> int:
    """The whole factor that brings an image's longer side nearest to `SIDE` pixels, at least 1."""
    return max(1, round(SIDE / max(height, width)))


def channel_note(channels: int) -> str:
    """What a sheet must say about channels that it cannot show; empty for grey and RGB."""
    if channels in (1, 3):
        return ""
    return f"first channel of {channels}" if channels == 2 else f"first 3 channels of {channels}, as RGB"


def enlarge(images: Pixels) -> Pixels:
    """[N, C, H, W] to [N, h, w] (grey) or [N, h, w, 3], every pixel repeated `scale_for` times both ways."""
    channels, height, width = images.shape[1:]
    scale = scale_for(height, width)
    large = images.repeat(scale, axis=2).repeat(scale, axis=3)
    return large[:, 0] if channels < 3 else large[:, :3].transpose(0, 2, 3, 1)


def grid(title: str, rows: Sequence[Row], headers: Sequence[str] = ()) -> Sheet:
    """Rows of images below a title, labels to their left, one header above each column."""
    large = [enlarge(row.images) for row in rows]
    height, width = large[0].shape[1:3]
    label_width = max(_length(row.label) for row in rows)
    left = MARGIN + label_width + (GROUP_GAP if label_width else 0)
    column = max(width, *(_length(header) for header in headers), 0)
    line = max(height, LABEL if label_width else 0)
    texts, top = _title(title, rows[0].images.shape[1])
    middles = [left + i * (column + GAP) + column // 2 for i in range(max(len(images) for images in large))]
    if headers:
        texts += [Text(x, top, header, "ma") for x, header in zip(middles, headers, strict=False)]
        top += LABEL + GAP + 2
    tiles: list[Tile] = []
    for row, images in zip(rows, large, strict=True):
        top += GROUP_GAP - GAP if row.new_group else 0
        tiles += [
            Tile(x - width // 2, top + (line - height) // 2, image) for x, image in zip(middles, images, strict=False)
        ]
        if row.label:
            texts.append(Text(left - GROUP_GAP, top + line // 2, row.label, "rm"))
        top += line + GAP
    return _sheet(tiles, texts)


def triangle_rows(side: int) -> list[tuple[int, int]]:
    """(row, place in the row) of each of the side (side + 1) / 2 images of a triangle, from the top corner down."""
    return [(row, place) for row in range(side) for place in range(row + 1)]


def triangle(title: str, images: Pixels, corners: Pixels, corner_label: str = "original") -> Sheet:
    """Images in a triangle, in the order of `triangle_rows`; `corners` [3, C, H, W] stand outside it.

    The corners belong to the top, bottom left and bottom right of the triangle.
    """
    side = (math.isqrt(8 * len(images) + 1) - 1) // 2
    if side * (side + 1) // 2 != len(images) or len(corners) != 3:
        raise ValueError(f"{len(images)} images make no triangle, or {len(corners)} corners are not three")
    large, originals = enlarge(images), enlarge(corners)
    height, width = large.shape[1:3]
    across, down = width + GAP, height + GAP
    texts, top = _title(title, images.shape[1])
    beside = max(width, _length(corner_label)) + GROUP_GAP  # an original and the space to the triangle
    left = MARGIN + beside
    apex = left + (side - 1) * across // 2
    first = top + height + GROUP_GAP  # the triangle's first row
    last = first + (side - 1) * down
    tiles = [
        Tile(apex + (2 * place - row) * across // 2, first + row * down, image)
        for (row, place), image in zip(triangle_rows(side), large, strict=True)
    ]
    right = left + side * across - GAP + GROUP_GAP
    for x, y, image in zip((apex, left - GROUP_GAP - width, right), (top, last, last), originals, strict=True):
        tiles.append(Tile(x, y, image))
    texts += [
        Text(apex + width + GROUP_GAP, top + height // 2, corner_label, "lm"),
        Text(left - GROUP_GAP, last - GAP - 2, corner_label, "rs"),
        Text(right, last - GAP - 2, corner_label, "ls"),
    ]
    return _sheet(tiles, texts)


def render(sheet: Sheet) -> Pixels:
    """Draw a sheet: [height, width] where all its images are grey, else [height, width, 3]."""
    colour = any(tile.pixels.ndim == 3 for tile in sheet.tiles)
    image = Image.new("RGB" if colour else "L", (sheet.width, sheet.height), "white")
    draw = ImageDraw.Draw(image)
    for tile in sheet.tiles:
        height, width = tile.pixels.shape[:2]
        draw.rectangle((tile.left - 1, tile.top - 1, tile.left + width, tile.top + height), outline=_grey(PALE, colour))
        image.paste(Image.fromarray(np.ascontiguousarray(tile.pixels)), (tile.left, tile.top))
    for text in sheet.texts:
        draw.text((text.x, text.y), text.words, fill=_grey(INK, colour), font=_font(text.size), anchor=text.anchor)
    return np.array(image)


def png(pixels: Pixels) -> bytes:
    """[H, W] or [H, W, 3] as a PNG file without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _title(title: str, channels: int) -> tuple[list[Text], int]:
    """The title's lines and the height at which images may begin."""
    note = channel_note(channels)
    lines = [*title.splitlines(), *([note] if note else [])]
    texts, top = [], MARGIN
    for i, words in enumerate(lines):
        size = LABEL if i else TITLE
        texts.append(Text(MARGIN, top, words, "la", size))
        top += size + 6
    return texts, top + GAP


def _sheet(tiles: Sequence[Tile], texts: Sequence[Text]) -> Sheet:
    """The smallest sheet with everything on it, and a margin."""
    boxes = [_box(text) for text in texts]
    boxes += [(t.left, t.top, t.left + t.pixels.shape[1], t.top + t.pixels.shape[0]) for t in tiles]
    return Sheet(
        width=max(box[2] for box in boxes) + MARGIN,
        height=max(box[3] for box in boxes) + MARGIN,
        tiles=tuple(tiles),
        texts=tuple(texts),
    )


def _box(text: Text) -> tuple[int, int, int, int]:
    """The rectangle that a line of words covers: left, top, right, bottom."""
    box = _font(text.size).getbbox(text.words, anchor=text.anchor)
    left, top, right, bottom = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    return text.x + left, text.y + top, text.x + right, text.y + bottom


def _length(words: str) -> int:
    return math.ceil(_font(LABEL).getlength(words)) if words else 0


def _grey(level: int, colour: bool) -> int | tuple[int, int, int]:
    return (level, level, level) if colour else level


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
