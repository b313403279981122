"""A user's .npz file: nothing is unpickled, every value is checked."""

import math
import os
import zipfile
from pathlib import Path

import numpy as np

from vaeline.data.sources.dataset import Dataset, Split
from vaeline.data.sources.images import LARGEST_SIDE
from vaeline.errors import UserError
from vaeline.io.safe_read import shown

IMAGES = "images of type uint8 (0 to 255), N x H x W, or N x H x W x C with 1 or 3 channels"
LABELS = "labels that are integers or strings, N"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> Dataset:
    """Read `images` (uint8, N x H x W or N x H x W x C) and, if there, `labels` (N integers or strings).

    Other integer types are taken where every value is from 0 to 255. Labels become 0..K-1 in the order of their
    values, which are the class names unless they are these numbers already. Raises UserError naming the file, the array
    and the index for anything else: objects, NaN, fractions, negatives, too large values, wrong dimensions or counts.
    """
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(array) for name, array in archive.items()}
    except (OSError, UserError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # numpy and zipfile raise many kinds, one for each way in which a file is broken
        reason = shown(str(error).partition("\n")[0])
        raise UserError(f"{path}: is not a complete .npz file: {reason}; allowed: as numpy.savez writes it") from None
    if "images" not in arrays or set(arrays) - {"images", "labels"}:
        raise UserError(f"{path}: holds {shown(', '.join(arrays))}; allowed: images and, if wanted, labels")
    images, labels = arrays["images"], arrays.get("labels")
    if images.dtype.kind not in "iu":
        raise UserError(f"{path}: images is of type {shown(images.dtype)}; allowed: {IMAGES}")
    if images.dtype != np.uint8 and (wrong := (images < 0) | (images > 255)).any():
        where = [int(index[0]) for index in np.nonzero(wrong)]
        raise UserError(f"{path}: images{where} is {images[tuple(where)]}; allowed: {IMAGES}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or len(images) == 0:
        raise UserError(f"{path}: images has shape {images.shape}; allowed: {IMAGES}")
    if not all(1 <= side <= LARGEST_SIDE for side in images.shape[1:3]):
        raise UserError(f"{path}: images has shape {images.shape}; allowed: 1 to {LARGEST_SIDE} pixels a side")
    pixels = images.astype(np.uint8, copy=False)
    pixels = pixels[:, None] if images.ndim == 3 else np.moveaxis(pixels, 3, 1)  # N x C x H x W
    if labels is None:
        return Dataset(Split(pixels))
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path}: labels is of type {shown(labels.dtype)}; allowed: {LABELS}")
    if labels.shape != (len(images),):
        raise UserError(f"{path}: labels has shape {labels.shape}; allowed: ({len(images)},)")
    values, numbers = np.unique(labels, return_inverse=True)
    named = values.tolist() != list(range(len(values)))
    return Dataset(Split(pixels, numbers.astype(np.int64)), classes=tuple(map(str, values)) if named else None)


def _check_sizes(path: Path) -> None:
    """Refuse, before any memory is taken, an archive that unpacks to too much or a header of more than its file."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = min(memory // 2, max(2**30, 100 * path.stat().st_size))
    with zipfile.ZipFile(path) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > most:
            raise UserError(f"would unpack to {size:,} bytes; allowed: at most {most:,}")
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, _, kind = HEADERS[np.lib.format.read_magic(file)](file)
                if not kind.hasobject and file.tell() + math.prod(shape) * kind.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} claims shape {shape} of {kind} in {member.file_size:,} bytes")
