"""Labelled sheets of images: pixels exactly repeated, on white, the same bytes every time.

Images are uint8 [N, C, H, W]; all are enlarged by one whole factor, so that a pixel of the model is a sharp square.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vaeline.errors import UserError

Pixels = npt.NDArray[np.uint8]

SIDE = 56  # pixels of the sheet; an enlarged image is about this large
MARGIN, GAP = 14, 4  # around the sheet; between images
TYPE = 14  # pixels, the size of type
INK, PALE = 32, 208  # grey levels of words and of the thin line around an image


@dataclass(frozen=True)
class Tile:
    """One image and its place; rows and columns count in images, and may be fractions."""

    row: float
    column: float
    image: Pixels  # [C, H, W]


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows: a title of some lines, images, words to the left of rows and above columns."""

    title: str
    tiles: tuple[Tile, ...]
    labels: dict[float, str]  # by row
    headers: tuple[str, ...] = ()


def to_pixels(means: npt.NDArray[np.floating[Any]]) -> Pixels:
    """Expected pixels on [0, 1] to the nearest of the 256 levels; raises UserError where one is not finite."""
    if not np.isfinite(means).all():
        raise UserError("the model decodes to pixels that are not finite; train it again")
    levels: Pixels = np.rint(np.clip(means, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def enlarge(image: Pixels) -> Pixels:
    """[C, H, W] to [h, w] (grey) or [h, w, 3], every pixel repeated both ways until the longer side is near SIDE."""
    scale = max(1, round(SIDE / max(image.shape[1:])))
    large = image.repeat(scale, axis=1).repeat(scale, axis=2)
    return large[0] if len(image) < 3 else np.ascontiguousarray(large[:3].transpose(1, 2, 0))


def grid(title: str, rows: Sequence[tuple[str, Pixels]], headers: Sequence[str] = (), group: int = 1) -> Sheet:
    """Labelled rows of images below a title; more space after every `group` of them where that is more than one."""
    places = [i + (i // group * 0.2 if group > 1 else 0) for i in range(len(rows))]
    tiles = [
        Tile(row, column, image)
        for row, (_, images) in zip(places, rows, strict=True)
        for column, image in enumerate(images)
    ]
    labels = {row: label for row, (label, _) in zip(places, rows, strict=True) if label}
    return Sheet(title, tuple(tiles), labels, tuple(headers))


def triangle(title: str, images: Pixels, corners: Pixels) -> Sheet:
    """Images in a triangle, row by row from the top; `corners` [3, C, H, W] stand outside its top, left and right."""
    side = (math.isqrt(8 * len(images) + 1) - 1) // 2
    if side * (side + 1) // 2 != len(images) or len(corners) != 3:
        raise ValueError(f"{len(images)} images make no triangle, or {len(corners)} corners are not three")
    places = [(row + 1.2, 1.2 + (side - 1 - row) / 2 + place) for row in range(side) for place in range(row + 1)]
    places += [(0, 1.2 + (side - 1) / 2), (side + 0.2, 0), (side + 0.2, side + 1.4)]
    tiles = [Tile(*place, image) for place, image in zip(places, [*images, *corners], strict=True)]
    return Sheet(title, tuple(tiles), {})


def render(sheet: Sheet) -> Pixels:
    """The drawn sheet: [height, width] where its images are grey, else [height, width, 3]."""
    font = ImageFont.load_default(TYPE)
    large = [enlarge(tile.image) for tile in sheet.tiles]
    height, width = large[0].shape[:2]
    lines, channels = sheet.title.splitlines(), len(sheet.tiles[0].image)
    if channels not in (1, 3):
        lines.append(f"first channel of {channels}" if channels == 2 else f"first 3 channels of {channels}, as RGB")
    left = MARGIN + max((math.ceil(font.getlength(f"{label}  ")) for label in sheet.labels.values()), default=0)
    across = max([width, *(math.ceil(font.getlength(header)) for header in sheet.headers)]) + GAP
    down = max(height, TYPE if sheet.labels else 0) + GAP
    top = MARGIN + (len(lines) + bool(sheet.headers)) * (TYPE + 6) + GAP
    corners = [
        (left + round(t.column * across) + (across - GAP - width) // 2, top + round(t.row * down)) for t in sheet.tiles
    ]
    right = max([x + width for x, _ in corners] + [MARGIN + math.ceil(font.getlength(line)) for line in lines])
    size = (max(right, left + len(sheet.headers) * across) + MARGIN, max(y for _, y in corners) + height + MARGIN)
    mode, ink, pale = ("RGB", (INK,) * 3, (PALE,) * 3) if large[0].ndim == 3 else ("L", INK, PALE)
    drawn = Image.new(mode, size, "white")
    draw = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + i * (TYPE + 6)), line, fill=ink, font=font)
    for i, header in enumerate(sheet.headers):
        draw.text((left + i * across + (across - GAP) // 2, top - GAP), header, fill=ink, font=font, anchor="md")
    for row, label in sheet.labels.items():
        draw.text((MARGIN, top + round(row * down) + height // 2), label, fill=ink, font=font, anchor="lm")
    for (x, y), image in zip(corners, large, strict=True):
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=pale)
        drawn.paste(Image.fromarray(image), (x, y))
    return np.array(drawn)


def png(pixels: Pixels) -> bytes:
    """[H, W] or [H, W, 3] as a PNG file without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
