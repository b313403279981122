"""From the original bytes in `data/raw` to arrays: one reader a source."""

import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.config import Digits, Download, Folder, Npz, Shapes, Source
from vaeline.data.sources.catalogue import DIGIT_NAMES, DIGITS, PUBLIC_SETS, SHAPE_NAMES
from vaeline.data.sources.dataset import Dataset, Split
from vaeline.data.sources.idx import read_idx
from vaeline.data.sources.images import read_folder
from vaeline.data.sources.npz import read_npz
from vaeline.data.sources.pinned import check_digest
from vaeline.errors import UserError

CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
CIFAR_RECORDS = 10_000  # a file


def read_source(source: Source, raw: Path) -> Dataset:
    """Read and validate what `fetch` left in `raw`; raises UserError naming the file that is not as it should be."""
    if not raw.is_dir():
        raise UserError(f"{raw}: is missing; run the stage fetch first")
    match source:
        case Download():
            return _read_public(source.kind, raw)
        case Digits():
            return _read_digits(raw)
        case Folder():
            images, classes = read_folder(raw, source.size, source.mode)
            return Dataset(images, classes=classes)
        case Npz():
            return Dataset(read_npz(raw / "data.npz"))
        case Shapes():
            return _read_shapes(source, raw)


def _read_public(kind: str, raw: Path) -> Dataset:
    public = PUBLIC_SETS[kind]
    for item in public.items:
        check_digest(raw, item)
    paths = [raw / item.name for item in public.items]
    if kind == "cifar10":
        pool, test = read_cifar10(paths[0], CIFAR_RECORDS)
    elif kind == "svhn":
        pool, test = (read_svhn(path) for path in paths)
    else:
        pool, test = read_labelled_idx(*paths[:2]), read_labelled_idx(*paths[2:])
    return Dataset(pool, test, public.classes)


def read_labelled_idx(images: Path, labels: Path) -> Split:
    """Images N x H x W and labels N from two IDX files; raises UserError where their counts differ."""
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise UserError(
            f"{labels}: holds {len(numbers)} labels; allowed: {len(pixels)}, one for each image of {images}"
        )
    return Split(pixels[:, None], numbers.astype(np.int64))


def read_cifar10(path: Path, records: int) -> tuple[Split, Split]:
    """The binary version's archive: data_batch_1..5.bin and test_batch.bin of `records` records each."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    blocks = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name, file = Path(member.name).name, archive.extractfile(member)
                if name in names and file is not None and member.size == records * CIFAR_RECORD:
                    blocks[name] = np.frombuffer(file.read(), np.uint8).reshape(records, CIFAR_RECORD)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{path}: is not a complete .tar.gz: {error}") from None
    if missing := [name for name in names if name not in blocks]:
        raise UserError(f"{path}: holds no {missing[0]} of {records} records; allowed: CIFAR-10's binary version")
    return _cifar_images(np.concatenate([blocks[name] for name in names[:-1]])), _cifar_images(blocks[names[-1]])


def _cifar_images(records: NDArray[np.uint8]) -> Split:
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def read_svhn(path: Path) -> Split:
    """A MATLAB file with X (H x W x C x N) and y (N x 1), where 10 is the digit 0."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(path, variable_names=("X", "y"))
        pixels, labels = content["X"], content["y"].ravel()
    except Exception as error:  # scipy raises many kinds, one for each way in which a file is broken
        raise UserError(f"{path}: is not a complete MATLAB file with X and y: {error}") from None
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise UserError(f"{path}: X is {pixels.dtype} {pixels.shape}; allowed: uint8 (32, 32, 3, {len(labels)})")
    return Split(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10)


def _read_digits(raw: Path) -> Dataset:
    """8 x 8 counts from 0 to 16, stretched to 0..255."""
    check_digest(raw, DIGITS)
    table = np.loadtxt(raw / DIGITS.name, delimiter=",", dtype=np.int64)  # N x 65
    pixels = ((table[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Dataset(Split(pixels, table[:, 64]), classes=DIGIT_NAMES)


def _read_shapes(source: Shapes, raw: Path) -> Dataset:
    def array(name: str) -> NDArray[np.generic]:
        try:
            return np.asarray(np.load(raw / name, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{raw / name}: is damaged: {error}; run the stage fetch again") from None

    pixels, labels, factors = array("images.npy"), array("labels.npy"), array("factors.npy")
    if pixels.shape != (source.count, 3, source.size, source.size):
        raise UserError(f"{raw / 'images.npy'}: is not what data.source asks for; run the stage fetch again")
    return Dataset(Split(pixels, labels, factors), classes=SHAPE_NAMES)  # type: ignore[arg-type]
