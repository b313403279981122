"""The prepared data: its manifest, and the splits checked against it."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vaeline.data.sources.dataset import Split
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.yaml_config import Section, validate

MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")


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
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage prepare") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}; run the stage prepare again") from None
    manifest = validate(DataManifest, content, str(path))
    if set(manifest.splits) != set(SPLITS):
        raise UserError(f"{path}: has the splits {', '.join(manifest.splits)}; allowed: {', '.join(SPLITS)}")
    return manifest


def manifest_digest(folder: Path) -> str:
    """Hex SHA-256 of `manifest.json`, which holds the digests of all files: the digest of the data."""
    return file_digest(folder / MANIFEST)


def load_split(folder: Path, split: str) -> NDArray[np.uint8]:
    """The images of a split as a read-only memory map, uint8 N x C x H x W.

    Raises UserError where the file is missing, changed since `prepare` wrote it, or not of the manifest's shape.
    """
    manifest = read_manifest(folder)
    summary = _summary(manifest, split)
    return _load(folder / f"{split}.npy", summary.sha256, (summary.count, *manifest.shape), np.dtype(np.uint8))


def load_labels(folder: Path, split: str) -> NDArray[np.int64] | None:
    """The labels of a split, int64 N, or None where the source has none. Raises UserError as `load_split` does."""
    summary = _summary(read_manifest(folder), split)
    path = folder / f"{split}_labels.npy"
    return _load(path, summary.labels_sha256, (summary.count,), np.dtype(np.int64)) if summary.labels else None


def load_factors(folder: Path, split: str) -> NDArray[np.float64] | None:
    """The factors of a split, float64 N x F, or None where unknown. Raises UserError as `load_split` does."""
    summary = _summary(read_manifest(folder), split)
    path = folder / f"{split}_factors.npy"
    return _load(path, summary.factors_sha256, (summary.count, None), np.dtype(np.float64)) if summary.factors else None


def open_split(folder: Path, split: str) -> Split:
    """A split's images, labels and factors. Raises UserError as `load_split` does."""
    return Split(load_split(folder, split), load_labels(folder, split), load_factors(folder, split))


def _summary(manifest: DataManifest, split: str) -> SplitSummary:
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown; allowed: {', '.join(SPLITS)}")
    return manifest.splits[split]


def _load(path: Path, sha256: str | None, shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    again = "run `dvc repro -f prepare`"
    try:
        found = file_digest(path)
        if sha256 is not None and found != sha256:
            raise UserError(f"{path}: changed since it was written: SHA-256 is {found}; allowed: {sha256}; {again}")
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {again}") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: is not an array: {error}; {again}") from None
    fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if array.dtype != dtype or not fits:
        expected = " x ".join("F" if side is None else str(side) for side in shape)
        raise UserError(f"{path}: is {array.dtype} {array.shape}; allowed: {dtype} {expected}; {again}")
    return array
