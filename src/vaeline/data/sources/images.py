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
LIMIT = f"1 to {LARGEST_SIDE} pixels a side"
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 16-bit modes would be clipped


def scan(folder: Path) -> tuple[tuple[str, ...] | None, list[tuple[Path, int]]]:
    """The class names and every image with its class, in a fixed order; the names are None without subfolders.

    Either all images lie in `folder`, or each in a subfolder that is its class. Hidden files are left out. Raises
    UserError for an empty folder or class, other files, deeper folders, and links that lead out.
    """
    if not folder.is_dir():
        raise UserError(f"data.source.path: {folder}: is not a folder; allowed: a folder of PNG or JPEG images")
    entries = _entries(folder, folder)
    subfolders = [entry for entry in entries if entry.is_dir()]
    if not subfolders:
        return None, [(path, 0) for path in _images(folder, entries)]
    if stray := [entry for entry in entries if not entry.is_dir()]:
        raise UserError(f"{stray[0]}: lies beside class folders; allowed: only folders, or only images, in {folder}")
    per_class = [_images(subfolder, _entries(subfolder, folder)) for subfolder in subfolders]
    files = [(path, label) for label, paths in enumerate(per_class) for path in paths]
    return tuple(subfolder.name for subfolder in subfolders), files


def _entries(folder: Path, root: Path) -> list[Path]:
    """What lies in `folder`, hidden files apart, in order of name."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.exists():
            raise UserError(f"{entry}: is a link to nothing; allowed: files, and links within {root}")
        if entry.is_symlink() and root.resolve() not in entry.resolve().parents:
            raise UserError(f"{entry}: is a link out of {root}; allowed: files, and links within it")
    return entries


def _images(folder: Path, entries: list[Path]) -> list[Path]:
    if not entries:
        raise UserError(f"{folder}: holds no images; allowed: at least one {', '.join(SUFFIXES)}")
    for entry in entries:
        if entry.is_dir():
            raise UserError(f"{entry}: is a folder within a class folder; allowed: one level of class folders")
        if entry.suffix.lower() not in SUFFIXES or not entry.is_file():
            raise UserError(f"{entry}: is not an image file; allowed: {', '.join(SUFFIXES)}")
    return entries


def read_folder(folder: Path, size: int | None, mode: str | None) -> tuple[Split, tuple[str, ...] | None]:
    """Decode every image of `folder`: resized (stretched) to size x size and converted to `mode` only where given.

    Raises UserError naming the file for what is not a complete PNG or JPEG, is too large, or unlike the first image.
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
    return Split(pixels, labels), classes


def read_image(path: Path, size: int | None = None, mode: str | None = None) -> NDArray[np.uint8]:
    """One image as C x H x W. Its size is checked in the header, before a small file can become gigabytes."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns from 89 million pixels on; here the limit is lower
            image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))
            _check(path, image.size, image.mode, mode)
            image.load()
            image = ImageOps.exif_transpose(image)  # upright, as the camera noted it
    except Image.DecompressionBombError:
        raise UserError(f"{path}: claims to be a huge image; allowed: {LIMIT}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = "is not a PNG or JPEG" if isinstance(error, UnidentifiedImageError) else f"is damaged: {error}"
        raise UserError(f"{path}: {reason}; allowed: a complete PNG or JPEG image") from None
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _check(path: Path, size: tuple[int, int], found: str, wanted: str | None) -> None:
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(f"{path}: is {size[0]} x {size[1]} pixels; allowed: {LIMIT}")
    if wanted is None and found not in ("L", "RGB"):
        raise UserError(f"{path}: its mode is {found}; allowed: L or RGB, or data.source.mode to convert")
    if found not in CONVERTIBLE:
        raise UserError(f"{path}: its mode is {found}, which would lose depth; allowed: {', '.join(CONVERTIBLE)}")


def _describe(image: NDArray[np.uint8]) -> str:
    channels, height, width = image.shape
    return f"{width} x {height} pixels in {'L' if channels == 1 else 'RGB'}"
