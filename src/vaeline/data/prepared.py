"""The prepared data: its manifest, and the splits checked against it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vaeline.config.data import Shape
from vaeline.data.sources.dataset import Split
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.safe_read import read_bounded
from vaeline.io.yaml_config import Section, validate_json

MANIFEST, MOST_BYTES = "manifest.json", 1_000_000
SPLITS = ("train", "validation", "test")
AGAIN = "run `dvc repro -f prepare`"


class SplitSummary(Section):
    """A split in the manifest: image count, digests of its files, mean and standard deviation of pixels on [0, 1]."""

    count: Annotated[int, Field(ge=1)]
    sha256: str
    mean: float
    std: float
    labels: bool
    factors: bool
    labels_sha256: str | None = None
    factors_sha256: str | None = None


class DataManifest(Section):
    """`manifest.json`; its own SHA-256 is the data's identity."""

    format: Literal[1] = 1
    source: str
    shape: Annotated[tuple[int, int, int], Field(strict=False)]  # C, H, W
    binarise: Literal["none", "static", "dynamic"]
    splits: dict[str, SplitSummary]
    duplicates_dropped: int
    classes: list[str] | None


def read_manifest(folder: Path) -> DataManifest:
    """Read `manifest.json`; raises UserError where it is missing, damaged or incomplete."""
    path = folder / MANIFEST
    try:
        return validate_json(DataManifest, read_bounded(path, MOST_BYTES), path)
    except UserError as error:
        raise UserError(f"{error}; run the stage prepare") from None


def manifest_digest(folder: Path) -> str:
    """Hex SHA-256 of `manifest.json`, which holds the digests of all files: the digest of the data."""
    return file_digest(folder / MANIFEST)


def open_split(folder: Path, split: str) -> Split:
    """A split's images, labels and factors as read-only memory maps; None for what its source has not.

    Of training images that were written whole, for random crops, the middle. Raises UserError where a file is missing
    or changed since `prepare` wrote it.
    """
    manifest = read_manifest(folder)
    summary = manifest.splits[split]
    return Split(
        centre(_load(folder / f"{split}.npy", summary.sha256), manifest.shape),
        _load(folder / f"{split}_labels.npy", summary.labels_sha256),
        _load(folder / f"{split}_factors.npy", summary.factors_sha256),
    )


def load_whole(folder: Path, split: str) -> NDArray[np.uint8]:
    """The images of a split as they were written. Raises UserError as `open_split`."""
    images: NDArray[np.uint8] = _load(folder / f"{split}.npy", read_manifest(folder).splits[split].sha256)
    return images


def centre(images: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """The middle of images, a view: [N, C, H, W] -> [N, *shape]."""
    y, x = ((side - own) // 2 for side, own in zip(images.shape[2:], shape[1:], strict=True))
    return images[..., y : y + shape[1], x : x + shape[2]]


def load_split(folder: Path, split: str) -> NDArray[np.uint8]:
    """The images of a split as `open_split` reads them."""
    return open_split(folder, split).pixels


def _load(path: Path, sha256: str | None) -> Any:
    if sha256 is None:
        return None
    try:
        if (found := file_digest(path)) != sha256:
            raise UserError(f"{path}: changed since it was written: SHA-256 is {found}; allowed: {sha256}; {AGAIN}")
        return np.load(path, mmap_mode="r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {AGAIN}") from None
