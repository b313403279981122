"""A user's .npz file: nothing is unpickled, every value is checked."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Split
from vaeline.data.sources.images import LARGEST_SIDE
from vaeline.errors import UserError

IMAGES = "images of type uint8 (0 to 255), N x H x W, or N x H x W x C with 1 or 3 channels"
LABELS = "labels of an integer type from 0 on, N"


def read_npz(path: Path) -> Split:
    """Read `images` (uint8, N x H x W or N x H x W x C) and, if there, `labels` (integers from 0, N).

    Other integer types are taken where every value is from 0 to 255. Raises UserError naming the file, the array
    and the index for anything else: objects, NaN, fractions, negatives, too large values, wrong dimensions or counts.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(array) for name, array in archive.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # numpy and zipfile raise many kinds, one for each way in which a file is broken
        raise UserError(f"{path}: is not a complete .npz file: {error}; allowed: as numpy.savez writes it") from None
    if "images" not in arrays or set(arrays) - {"images", "labels"}:
        found = ", ".join(arrays) or "nothing"
        raise UserError(f"{path}: holds {found}; allowed: images and, if wanted, labels")
    images, labels = arrays["images"], arrays.get("labels")
    _check_values(f"{path}: images", images, 255, IMAGES)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or len(images) == 0:
        raise UserError(f"{path}: images has shape {images.shape}; allowed: {IMAGES}")
    if not all(1 <= side <= LARGEST_SIDE for side in images.shape[1:3]):
        raise UserError(f"{path}: images has shape {images.shape}; allowed: 1 to {LARGEST_SIDE} pixels a side")
    pixels = images.astype(np.uint8, copy=False)
    pixels = pixels[:, None] if images.ndim == 3 else np.moveaxis(pixels, 3, 1)  # N x C x H x W
    if labels is None:
        return Split(pixels)
    _check_values(f"{path}: labels", labels, np.iinfo(np.int64).max, LABELS)
    if labels.shape != (len(images),):
        raise UserError(f"{path}: labels has shape {labels.shape}; allowed: ({len(images)},)")
    return Split(pixels, labels.astype(np.int64))


def _check_values(name: str, array: NDArray[Any], largest: int, allowed: str) -> None:
    """Refuse what is not whole numbers from 0 to `largest`, naming the first that is not."""
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} is of type {array.dtype}; allowed: {allowed}")
    if array.dtype != np.uint8 and (wrong := (array < 0) | (array > largest)).any():
        where = [int(index[0]) for index in np.nonzero(wrong)]
        raise UserError(f"{name}{where} is {array[tuple(where)]}; allowed: {allowed}")
