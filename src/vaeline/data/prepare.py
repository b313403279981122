"""Stage prepare: from `data/raw` to validated, split, memory-mappable arrays and their manifest."""

import json
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.config import Data
from vaeline.data.prepared import MANIFEST, SPLITS, DataManifest, SplitSummary, read_manifest
from vaeline.data.sources.dataset import Dataset, Split
from vaeline.data.sources.readers import read_source
from vaeline.data.splits import Indices, distinct, fingerprints, split
from vaeline.errors import UserError
from vaeline.io.atomic_write import new_file, new_folder
from vaeline.io.digests import file_digest
from vaeline.io.npy import npy_file

log = logging.getLogger(__name__)

BLOCK = 1 << 22  # bytes of pixels handled at once
Part = tuple[Split, Indices]


def prepare(data: Data, raw: Path, prepared: Path) -> DataManifest:
    """Write the splits and the manifest of `data` into the folder `prepared`, all of it or none.

    An image that lies in several splits stays only in the first of test, validation, train. Duplicates are found
    before binarisation; those within one split are counted in the log and stay.
    Binarisation draws each pixel once, 255 with probability pixel / 255: static in every split, dynamic in
    validation and test, while train stays grey and is drawn anew by the training.
    Raises UserError for bad data (see readers) and for splits that leave nothing to train on.
    """
    dataset = read_source(data.source, raw)
    parts, dropped = _parts(dataset, data)
    with new_folder(prepared) as folder:
        splits = {}
        for name, (images, indices) in parts.items():
            drawn = data.binarise == "static" or (data.binarise == "dynamic" and name != "train")
            rng = np.random.default_rng([data.seed, SPLITS.index(name)]) if drawn else None
            splits[name] = _write_split(folder, name, images, indices, rng)
        content = {
            "format": 1,
            "source": data.source.kind,
            "shape": list(dataset.pool.pixels.shape[1:]),
            "binarise": data.binarise,
            "splits": {name: summary.model_dump() for name, summary in splits.items()},
            "duplicates_dropped": dropped,
            "classes": list(dataset.classes) if dataset.classes else None,
        }
        with new_file(folder / MANIFEST) as file:
            file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return read_manifest(prepared)


def _parts(dataset: Dataset, data: Data) -> tuple[dict[str, Part], int]:
    """Each split as images and the indices of those in it, and how many duplicates were dropped."""
    pool, own_test = dataset.pool, dataset.test
    train, validation, test = split(
        len(pool), data.validation, data.test, official=own_test is not None, seed=data.seed
    )
    pool_prints = fingerprints(pool.pixels)
    test_prints = fingerprints(own_test.pixels) if own_test else pool_prints
    wanted = {
        "test": (np.arange(len(own_test)) if own_test else test, test_prints),
        "validation": (validation, pool_prints),
        "train": (train, pool_prints),
    }
    kept = distinct(wanted)
    for name, (indices, prints) in wanted.items():
        same = len(indices) - len({prints[index] for index in indices})
        log.info(
            "%s: %d images (dropped %d that are in another split; %d repeat within)",
            name, len(kept[name]), len(indices) - len(kept[name]), same,
        )  # fmt: skip
        if not len(kept[name]):
            raise UserError(f"{name}: empty once duplicates are dropped; allowed: distinct images in every split")
    dropped = sum(len(indices) - len(kept[name]) for name, (indices, _) in wanted.items())
    return {name: (own_test if name == "test" and own_test else pool, kept[name]) for name in SPLITS}, dropped


def _write_split(
    folder: Path, name: str, images: Split, indices: Indices, rng: np.random.Generator | None
) -> SplitSummary:
    path, count = folder / f"{name}.npy", len(indices)
    shape = images.pixels.shape[1:]
    histogram = np.zeros(256, np.int64)
    step = max(1, BLOCK // math.prod(shape))
    with npy_file(path, (count, *shape), np.uint8) as write:
        for start in range(0, count, step):
            block = images.pixels[indices[start : start + step]]
            block = block if rng is None else binarise(block, rng)
            histogram += np.bincount(block.ravel(), minlength=256)
            write(block)
    mean, std = moments(histogram)
    return SplitSummary(
        count=count,
        sha256=file_digest(path),
        mean=mean,
        std=std,
        labels=images.labels is not None,
        factors=images.factors is not None,
        labels_sha256=_write_rows(folder / f"{name}_labels.npy", images.labels, indices),
        factors_sha256=_write_rows(folder / f"{name}_factors.npy", images.factors, indices),
    )


def _write_rows(path: Path, rows: NDArray[np.int64] | NDArray[np.float64] | None, indices: Indices) -> str | None:
    if rows is None:
        return None
    with npy_file(path, (len(indices), *rows.shape[1:]), rows.dtype) as write:
        write(rows[indices])
    return file_digest(path)


def binarise(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """255 with probability pixel / 255, else 0: exact, since u is uniform on the 255 values 0..254."""
    threshold = rng.integers(0, 255, pixels.shape, dtype=np.uint8)
    return np.where(pixels > threshold, np.uint8(255), np.uint8(0))


def moments(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of pixels on [0, 1] from the counts of the 256 values: exact integers until last."""
    counts = [int(count) for count in histogram]
    n = sum(counts)
    first = sum(count * value for value, count in enumerate(counts))
    second = sum(count * value**2 for value, count in enumerate(counts))
    return first / n / 255, math.sqrt(n * second - first**2) / n / 255
