"""A folder of PNG and JPEG images, decoded with distrust."""

import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Images
from vaeline.data.sources.folders import scan
from vaeline.errors import UserError

log = logging.getLogger(__name__)

LARGEST_SIDE = 4096  # pixels
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 16-bit modes would be clipped


def read_folder(folder: Path, size: int | None, mode: str | None) -> tuple[Images, tuple[str, ...] | None]:
    """Decode every image of `folder`: resized (stretched) to size x size and converted to `mode` only where given.

    Raises UserError naming the file for what is not a whole PNG or JPEG, is too large, or unlike the first image.
    """
    classes, files = scan(folder)
    log.info("%s: decoding %d images", folder, len(files))
    first = read_image(files[0][0], size, mode)
    pixels = np.empty((len(files), *first.shape), np.uint8)  # N x C x H x W
    for index, (path, _) in enumerate(files):
        image = read_image(path, size, mode) if index else first
        if image.shape != first.shape:
            raise UserError(
                f"{path}: is {_describe(image)}, but {files[0][0]} is {_describe(first)}; allowed: images all alike, "
                "or data.source.size and data.source.mode to make them so"
            )
        pixels[index] = image
    labels = np.array([label for _, label in files], np.int64) if classes else None
    return Images(pixels, labels), classes


def read_image(path: Path, size: int | None = None, mode: str | None = None) -> NDArray[np.uint8]:
    """One image as C x H x W. Its size is checked in the header, before a small file can become gigabytes."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns from 89 million pixels on; here the limit is lower
            image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))
            _check(path, image.size, image.mode, mode)
            image.load()
            image = ImageOps.exif_transpose(image)  # the way up that the camera noted
    except Image.DecompressionBombError:
        raise UserError(f"{path}: claims to be a huge image; allowed: {_LIMIT}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = "is not a PNG or JPEG" if isinstance(error, UnidentifiedImageError) else f"is damaged: {error}"
        raise UserError(f"{path}: {reason}; allowed: a whole PNG or JPEG image") from None
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


_LIMIT = f"1 to {LARGEST_SIDE} pixels a side"


def _check(path: Path, size: tuple[int, int], found: str, wanted: str | None) -> None:
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(f"{path}: is {size[0]} x {size[1]} pixels; allowed: {_LIMIT}")
    if wanted is None and found not in ("L", "RGB"):
        raise UserError(f"{path}: its mode is {found}; allowed: L or RGB, or data.source.mode to convert")
    if found not in CONVERTIBLE:
        raise UserError(f"{path}: its mode is {found}, which would lose depth; allowed: {', '.join(CONVERTIBLE)}")


def _describe(image: NDArray[np.uint8]) -> str:
    channels, height, width = image.shape
    return f"{width} x {height} pixels in {'L' if channels == 1 else 'RGB'}"
