"""From the original bytes in `data/raw` to arrays: one reader a source."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.config.data import Download, Folder, Npz, Shapes, Source
from vaeline.data.sources.catalogue import PUBLIC_SETS, SHAPE_NAMES, checked
from vaeline.data.sources.dataset import Dataset, Split, check_brightness
from vaeline.data.sources.images import read_folder
from vaeline.data.sources.npz import read_npz
from vaeline.errors import UserError


def read_source(source: Source, raw: Path, scratch: Path | None = None) -> Dataset:
    """Read and validate what `fetch` left in `raw`; raises UserError naming the file that is not as it should be.

    The readers of public files check nothing further: their digests are the pinned ones. A user's pixels must be 8-bit
    ones: where the largest of all images is below 32, they are levels or a mask of 5 bits or fewer, not to be learned
    as shades of black. A folder's images lie in memory, or in a nameless file of the folder `scratch`.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: is missing; run the stage fetch first")
    match source:
        case Download():
            public, test = PUBLIC_SETS[source.kind], None
            paths = [checked(raw, item) for item in public.items]
            match source.kind:
                case "digits":
                    pool = read_digits(paths[0])
                case "cifar10":
                    pool, test = read_cifar10(paths[0])
                case "svhn":
                    pool, test = map(read_svhn, paths)
                case _:
                    pool, test = read_labelled_idx(*paths[:2]), read_labelled_idx(*paths[2:])
            return Dataset(pool, test, public.classes)
        case Folder():
            changes = {"fit": source.fit, "background": source.background}
            images, classes = read_folder(raw, scratch_folder=scratch, size=source.size, mode=source.mode, **changes)
            dataset = Dataset(images, classes=classes)
        case Npz():
            dataset = read_npz(raw / "data.npz")
        case Shapes():
            return _read_shapes(source, raw)
    check_brightness(dataset.pool.pixels, f"data.source.path: {source.path}")
    return dataset


def read_digits(path: Path) -> Split:
    """Lines of 64 pixels from 0 to 16, stretched to 0..255, and the label."""
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # N x 65
    return Split(((table[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8), table[:, 64])


def read_labelled_idx(images: Path, labels: Path) -> Split:
    """Images N x H x W and labels N from two IDX files."""
    return Split(_read_idx(images, 3)[:, None], _read_idx(labels, 1).astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Unsigned bytes after 4 bytes and a big-endian uint32 an axis (http://yann.lecun.com/exdb/mnist)."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_cifar10(path: Path) -> tuple[Split, Split]:
    """The binary version's archive: data_batch_1..5.bin and test_batch.bin."""
    records = {}  # N x (label, then the red, green and blue planes)
    with tarfile.open(path) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) and member.name.endswith(".bin"):
                records[Path(member.name).stem] = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    pool = np.concatenate([records[f"data_batch_{number}"] for number in range(1, 6)])
    pool_split, test_split = (
        Split(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0].astype(np.int64)) for part in (pool, records["test_batch"])
    )
    return pool_split, test_split


def read_svhn(path: Path) -> Split:
    """A MATLAB file with X (H x W x C x N) and y (N x 1), where 10 is the digit 0."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    content = loadmat(path, variable_names=("X", "y"))
    pixels, labels = content["X"].transpose(3, 2, 0, 1), content["y"].ravel()
    return Split(np.ascontiguousarray(pixels), labels.astype(np.int64) % 10)


def _read_shapes(source: Shapes, raw: Path) -> Dataset:
    try:
        arrays = [np.load(raw / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "factors")]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{raw}: is damaged: {error}; run the stage fetch again") from None
    if arrays[0].shape != (source.count, 3, source.size, source.size):
        raise UserError(f"{raw / 'images.npy'}: is not what data.source asks for; run the stage fetch again")
    return Dataset(Split(*arrays), classes=SHAPE_NAMES)
