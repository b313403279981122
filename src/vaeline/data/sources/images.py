"""A folder of PNG and JPEG images: the files, their classes, and their pixels, checked before decoding."""

import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Split
from vaeline.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE = 4096  # pixels
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 16-bit modes would be clipped


def scan(folder: Path) -> tuple[tuple[str, ...] | None, list[tuple[Path, int]]]:
    """The class names and every image with its class, in a fixed order; the names are None without subfolders.

    Either all images lie in `folder`, or each in a subfolder that is its class. Hidden files are left out. Raises
    UserError for an empty folder or class, other files, deeper folders, and links that lead out.
    """
    if not folder.is_dir():
        raise UserError(f"data.source.path: {folder}: is not a folder; allowed: a folder of PNG or JPEG images")
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and (stray := [entry for entry in entries if entry not in classes]):
        raise UserError(f"{stray[0]}: lies beside class folders; allowed: only folders, or only images, in {folder}")
    files: list[tuple[Path, int]] = []
    for label, place in enumerate(classes or [folder]):
        paths = _visible(place)
        for path in (place, *paths) if classes else paths:
            if path.is_symlink() and folder.resolve() not in path.resolve().parents:
                raise UserError(f"{path}: is a link out of {folder}; allowed: files, and links within it")
        if not paths:
            raise UserError(f"{place}: holds no images; allowed: at least one {', '.join(SUFFIXES)}")
        if wrong := [path for path in paths if not path.is_file() or path.suffix.lower() not in SUFFIXES]:
            raise UserError(f"{wrong[0]}: is not an image file; allowed: {', '.join(SUFFIXES)}")
        files += [(path, label) for path in paths]
    return tuple(entry.name for entry in classes) or None, files


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def read_folder(folder: Path, size: int | None, mode: str | None) -> tuple[Split, tuple[str, ...] | None]:
    """Decode every image of `folder`: resized (stretched) to size x size and converted to `mode` only where given.

    Raises UserError naming the file for what is not a complete PNG or JPEG, is too large, or unlike the first image.
    """
    classes, files = scan(folder)
    log.info("%s: decoding %d images", folder, len(files))
    first = read_image(files[0][0], size, mode)
    pixels = np.empty((len(files), *first.shape), np.uint8)  # N x C x H x W
    for index, (path, _) in enumerate(files):
        image = read_image(path, size, mode)
        if image.shape != first.shape:
            raise UserError(
                f"{path}: is {image.shape} (channels, height, width), but {files[0][0]} is {first.shape}; allowed: "
                "images all alike, or data.source.size and data.source.mode to make them so"
            )
        pixels[index] = image
    labels = np.array([label for _, label in files], np.int64) if classes else None
    return Split(pixels, labels), classes


def read_image(path: Path, size: int | None = None, mode: str | None = None) -> NDArray[np.uint8]:
    """One image as C x H x W. Its size is checked in the header, before a small file can become gigabytes."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns from 89 million pixels on; here the limit is lower
            image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))
            if max(image.size) > LARGEST_SIDE:
                raise ValueError(f"its size is {image.width} x {image.height}")
            if image.mode not in (("L", "RGB") if mode is None else CONVERTIBLE):
                allowed = ", ".join(CONVERTIBLE) if mode else "L or RGB, or data.source.mode to convert"
                raise UserError(f"{path}: its mode is {image.mode}; allowed: {allowed}")
            image.load()
            image = ImageOps.exif_transpose(image)  # upright, as the camera noted it
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        allowed = f"a complete PNG or JPEG image of at most {LARGEST_SIDE} pixels a side"
        raise UserError(f"{path}: cannot be decoded: {error}; allowed: {allowed}") from None
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
