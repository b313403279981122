"""A user's .npz file: nothing is unpickled, every value is checked."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Dataset, Split
from vaeline.data.sources.images import LARGEST_SIDE
from vaeline.errors import UserError
from vaeline.io.machine import memory
from vaeline.io.safe_read import shown

IMAGES = "8-bit pixels (uint8, 0 to 255), N x H x W, or N x H x W x C with 1 or 3 channels"
OBJECTS = "Python objects, which are never read; allowed: numbers, and names as labels.astype(str) makes them"
LABELS = "labels that are names or finite numbers, N"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
RANGES = ((0, 1), (-1, 1), (0, 255), (-128, 127), (0, 4095), (0, 65535))  # of pixels that are not 8-bit ones


def read_npz(path: Path) -> Dataset:
    """Read `images` and, if there, `labels` (N names or numbers).

    Taken for 8-bit pixels: uint8, and integers of other types but uint16 if all are from 0 to 255; as N x H x W, not
    H x H x N, or N x H x W x C with C 1 or 3. All else is refused with the expression that makes such pixels: floats,
    booleans, negatives, larger values, channels in another place, alpha. Labels become 0..K-1 in the order of their
    values, which are the class names unless they are these numbers already. Raises UserError naming file and array.
    """
    try:
        _check_sizes(path)
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:  # np.load might see a pickle
            arrays = {name: np.asarray(array) for name, array in archive.items()}
    except (OSError, UserError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # numpy and zipfile raise many kinds, one for each way in which a file is broken
        reason = shown(str(error).partition("\n")[0])
        raise UserError(f"{path}: is not a complete .npz file: {reason}; allowed: as numpy.savez writes it") from None
    if "images" not in arrays or set(arrays) - {"images", "labels"}:
        raise UserError(
            f"{path}: holds {shown(', '.join(arrays)) or 'no array'}; allowed: images and, if wanted, labels"
        )
    images, labels = arrays["images"], arrays.get("labels")
    if (fix := _shape_fix(images.shape)) is not None:
        then = _value_fix(images).replace(":", ", then" if fix else ":", 1) if _value_fault(images) else ""
        raise UserError(f"{path}: images has shape {images.shape}; allowed: {IMAGES}{fix}{then}")
    if not all(1 <= side <= LARGEST_SIDE for side in images.shape[1:3]):
        raise UserError(f"{path}: images has shape {images.shape}; allowed: 1 to {LARGEST_SIDE} pixels a side")
    if fault := _value_fault(images):
        raise UserError(f"{path}: {fault}; allowed: {IMAGES}{_value_fix(images)}")
    pixels = images.astype(np.uint8, copy=False)
    pixels = pixels[:, None] if images.ndim == 3 else np.moveaxis(pixels, 3, 1)  # N x C x H x W
    if labels is None:
        return Dataset(Split(pixels))
    if labels.dtype.kind not in "biufUS" or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        raise UserError(f"{path}: labels is of type {shown(labels.dtype)}, or not finite; allowed: {LABELS}")
    if labels.shape != (len(images),):
        raise UserError(f"{path}: labels has shape {labels.shape}; allowed: ({len(images)},)")
    values, numbers = np.unique(labels, return_inverse=True)
    names = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]
    named = names != list(range(len(names)))
    return Dataset(Split(pixels, numbers.astype(np.int64)), classes=tuple(map(str, names)) if named else None)


def _shape_fix(shape: tuple[int, ...]) -> str | None:
    """What makes N x H x W (x C) of images of another shape, "" where that is unknown, None where there is no need."""
    match shape:
        case (height, width, count) if height == width < count:
            return f": images.transpose(2, 0, 1), or images[..., None] if it is {height} images"
        case (count, _, _) | (count, _, _, 1 | 3) if count:
            return None
        case (_, 1 | 3, _, _):
            return ": images.transpose(0, 2, 3, 1)"
        case (_, _, 1 | 3, _):
            return ": images.transpose(3, 0, 1, 2)"
        case (_, _, _, 2 | 4):
            return ": composite the alpha channel on a background, then drop it"
        case (count, size):
            return f": images.reshape({count}, HEIGHT, WIDTH), HEIGHT x WIDTH = {size}"
    return ""


def _value_fault(images: NDArray[Any]) -> str:
    """What is found in place of 8-bit pixels; "" where they are."""
    if images.dtype.kind not in "iu" or images.dtype == np.uint16:
        return f"images is of type {shown(images.dtype)}"
    if images.dtype != np.uint8 and (wrong := (images < 0) | (images > 255)).any():
        where = np.unravel_index(int(wrong.argmax()), images.shape)
        return f"images{[int(index) for index in where]} is {images[where]}"
    return ""


def _value_fix(images: NDArray[Any]) -> str:
    """The expression that makes 8-bit pixels of real numbers in the first of the known ranges that holds them."""
    if images.dtype.kind in "biuf" and images.size:
        for low, high in RANGES:
            if low <= images.min() and images.max() <= high:
                return f": ((images - {low:.1f}) * (255 / {high - low})).round().astype('uint8')"
    return ""


def _check_sizes(path: Path) -> None:
    """Refuse, before any memory is taken, an archive that unpacks to too much or a header of more than its file."""
    most = min(memory() // 2, max(2**30, 100 * path.stat().st_size))
    with zipfile.ZipFile(path) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > most:
            raise UserError(f"would unpack to {size:,} bytes; allowed: at most {most:,}")
        if len({name.removesuffix(".npy") for name in archive.namelist()}) < len(archive.namelist()):
            raise UserError("holds an array twice; allowed: images and, if wanted, labels")
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, _, kind = HEADERS[np.lib.format.read_magic(file)](file)
                if kind.hasobject:
                    raise UserError(f"{shown(member.filename)} holds {OBJECTS}")
                if file.tell() + math.prod(shape) * kind.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} claims shape {shape} of {kind} in {member.file_size:,} bytes")
