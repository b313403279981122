"""A user's .npz file: nothing is unpickled, every value is checked."""

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Split
from vaeline.data.sources.images import LARGEST_SIDE
from vaeline.errors import UserError

LARGEST_ARRAY = 64 << 30  # bytes
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, MemoryError)
IMAGES = "images of type uint8 (0 to 255), N x H x W, or N x H x W x C with 1 or 3 channels"


def read_npz(path: Path) -> Split:
    """Read `images` (uint8, N x H x W or N x H x W x C) and, if there, `labels` (integers from 0, N).

    Other integer types are taken where every value is from 0 to 255. Raises UserError naming the file, the array
    and the index for anything else: objects, NaN, fractions, negatives, too large values, wrong dimensions or counts.
    """
    arrays = _read_arrays(path)
    if "images" not in arrays or set(arrays) - {"images", "labels"}:
        found = ", ".join(arrays) or "nothing"
        raise UserError(f"{path}: holds {found}; allowed: images and, if wanted, labels")
    pixels = _pixels(path, arrays["images"])
    labels = arrays.get("labels")
    return Split(pixels, None if labels is None else _labels(path, labels, len(pixels)))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if max((entry.file_size for entry in archive.infolist()), default=0) > LARGEST_ARRAY:
                raise ValueError(f"holds an array of more than {LARGEST_ARRAY >> 30} GiB")
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in archive.infolist()}
    except DAMAGE as error:
        raise UserError(f"{path}: is not a complete .npz file: {error}; allowed: as numpy.savez writes it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{entry.filename} is longer than its header says")
        return array


def _pixels(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 N x C x H x W."""
    _check_values(path, "images", images, 255)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(f"{path}: images has shape {images.shape}; allowed: {IMAGES}")
    if not all(1 <= side <= LARGEST_SIDE for side in images.shape[1:3]):
        raise UserError(f"{path}: images has shape {images.shape}; allowed: 1 to {LARGEST_SIDE} pixels a side")
    if len(images) == 0:
        raise UserError(f"{path}: images is empty; allowed: {IMAGES}")
    pixels = images.astype(np.uint8, copy=False)
    return pixels[:, None] if images.ndim == 3 else np.moveaxis(pixels, 3, 1)


def _labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    _check_values(path, "labels", labels, np.iinfo(np.int64).max)
    if labels.shape != (count,):
        raise UserError(f"{path}: labels has shape {labels.shape}, but there are {count} images; allowed: ({count},)")
    return labels.astype(np.int64)


def _check_values(path: Path, name: str, array: NDArray[Any], largest: int) -> None:
    """Refuse what is not whole numbers from 0 to `largest`, naming the first that is not."""
    allowed = IMAGES if name == "images" else "labels of an integer type from 0 on, N"
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UserError(f"{path}: {name}{_first(np.isnan(array))} is NaN; allowed: {allowed}")
    if array.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} is of type {array.dtype}; allowed: {allowed}")
    wrong = (array < 0) | (array > largest) if array.dtype != np.uint8 else np.zeros((), bool)
    if wrong.any():
        where = _first(wrong)
        raise UserError(f"{path}: {name}{where} is {array[tuple(where)]}; allowed: {allowed}")


def _first(mask: NDArray[np.bool_]) -> list[int]:
    return [int(index) for index in np.unravel_index(int(np.argmax(mask)), mask.shape)]
