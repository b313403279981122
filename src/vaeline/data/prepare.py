"""Stage prepare: from `data/raw` to validated, split, memory-mappable arrays, their manifest and a summary."""

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeline.config.data import Data, Shape
from vaeline.data.prepared import MANIFEST, SPLITS, DataManifest, SplitSummary, centre
from vaeline.data.sources.dataset import Dataset, Split
from vaeline.data.sources.readers import read_source
from vaeline.data.splits import Indices, distinct, fingerprints, split
from vaeline.errors import UserError
from vaeline.io.atomic_write import new_file, new_folder, write_folder
from vaeline.io.npy import Pixels, blocks, npy_file, taken
from vaeline.io.safe_read import shown

log = logging.getLogger(__name__)


BLOCK = 4 << 20  # bytes of pixels handled at once: the noise of binarisation depends on it
FEWEST_IMAGES, SMALLEST_SIDE = 4, 4  # of a split and in pixels: what the later stages need
MOST_CLASSES = 10_000
ROWS, COLUMNS = 8, 16  # images of the sheet
GAP, LARGEST = 2, 64  # pixels between images, and of an image's longer side


def prepare(data: Data, raw: Path, prepared: Path, summary: Path | None = None) -> DataManifest:
    """Write the splits and the manifest of `data` into the folder `prepared`, all of it or none; then their summary.

    An image that lies in several splits stays only in the first of test, validation, train. Duplicates are found
    before binarisation and a random crop, after a crop from the centre; those within one split are counted in the log
    and stay. For random crops the training images are written whole.
    Binarisation draws each pixel once, 255 with probability pixel / 255: static in every split, dynamic in
    validation and test, while train stays grey and is drawn anew by the training.
    Raises UserError for bad data (see readers) and for less of it than the later stages need.
    """
    prepared.parent.mkdir(parents=True, exist_ok=True)
    dataset = read_source(data.source, raw, prepared.parent)
    if min(shape := dataset.pool.pixels.shape[2:]) < SMALLEST_SIDE:
        raise UserError(f"data: images of {shape[1]} x {shape[0]} pixels; allowed: at least {SMALLEST_SIDE} a side")
    if (labels := dataset.pool.labels) is not None:
        allowed = min(len(labels) // 2, MOST_CLASSES)
        if (count := len(np.unique(labels))) > allowed:
            found = f"{count} classes for {len(labels)} images"
            raise UserError(f"data: {found}; allowed: two images a class and at most {MOST_CLASSES:,}, or no labels")
    try:
        shape = data.cropped(dataset.pool.pixels.shape[1:])
    except ValueError as error:
        raise UserError(str(error)) from None
    classes = [shown(name, most=60) for name in dataset.classes] if dataset.classes else None
    kept, dropped = _split(dataset, data)
    with new_folder(prepared) as folder:
        splits, numbers = dict[str, SplitSummary](), {}
        for name in SPLITS:
            images = dataset.test if name == "test" and dataset.test else dataset.pool
            drawn = data.binarise == "static" or (data.binarise == "dynamic" and name != "train")
            rng = np.random.default_rng([data.seed, SPLITS.index(name)]) if drawn else None
            whole = data.crop is not None and data.crop.kind == "random" and name == "train"
            written = images.pixels.shape[1:] if whole else shape

            def change(block: Pixels, rng: Any = rng, written: Shape = written) -> Pixels:
                block = centre(block, written)
                return block if rng is None else binarise(block, rng)

            splits[name], histograms = _write_split(folder / f"{name}.npy", images, kept[name], written, change)
            labels = None if images.labels is None else images.labels[kept[name]]
            numbers[name] = {"images": len(kept[name])} | split_numbers(histograms, labels, classes)
        manifest = DataManifest(
            source=data.source.kind,
            shape=shape,
            binarise=data.binarise,
            splits=splits,
            duplicates_dropped=dropped,
            classes=classes,
        )
        with new_file(folder / MANIFEST) as file:
            file.write((json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n").encode())
    if summary:
        sheet = contact_sheet(np.load(prepared / "train.npy", mmap_mode="r"))
        text = json.dumps(numbers, indent=2) + "\n"
        write_folder(summary, {"summary.json": text.encode(), "images.png": sheet})
    return manifest


def _split(dataset: Dataset, data: Data) -> tuple[dict[str, Indices], int]:
    """The indices of each split in the pool or the own test split, and the count of duplicates dropped."""
    own_test = dataset.test
    train, validation, test = split(
        len(dataset.pool), data.validation, data.test, official=own_test is not None, seed=data.seed
    )
    prints = fingerprints(_compared(dataset.pool, data))
    wanted = {
        "test": (np.arange(len(own_test)), fingerprints(_compared(own_test, data))) if own_test else (test, prints),
        "validation": (validation, prints),
        "train": (train, prints),
    }
    kept = distinct(wanted)
    dropped = 0
    for name, (indices, of_split) in wanted.items():
        gone, same = len(indices) - len(kept[name]), len(indices) - len({of_split[index] for index in indices})
        log.info(f"{name}: {len(kept[name])} images (dropped {gone} that are in another split; {same} repeat within)")
        if len(kept[name]) < FEWEST_IMAGES:
            raise UserError(
                f"{name}: {len(kept[name])} images once duplicates are dropped; allowed: at least {FEWEST_IMAGES} "
                "distinct ones in every split"
            )
        dropped += gone
    return kept, dropped


def _compared(images: Split, data: Data) -> Pixels:
    """What two images must share to be one: all their pixels, or those that a crop from the centre leaves."""
    if data.crop is None or data.crop.kind == "random":
        return images.pixels
    return centre(images.pixels, data.cropped(images.pixels.shape[1:]))


def _write_split(
    path: Path, images: Split, indices: Indices, shape: Shape, change: Callable[[Pixels], Pixels]
) -> tuple[SplitSummary, NDArray[np.int64]]:
    """Write the arrays of a split; returns its summary and the counts of each channel's values, [C, 256]."""
    from PIL import Image

    histograms, digest = np.zeros((shape[0], 256), np.int64), hashlib.sha256()
    with npy_file(path, (len(indices), *shape), np.uint8, digest) as write:
        for part in blocks(images.pixels[: len(indices)], BLOCK):
            block = change(taken(images.pixels, indices[part]))
            for channel in range(shape[0]):
                histograms[channel] += Image.fromarray(block[:, channel].reshape(1, -1)).histogram()
            write(block)
    found: dict[str, Any] = {"labels": images.labels is not None, "factors": images.factors is not None}
    for kind, rows in (("labels", images.labels), ("factors", images.factors)):
        if rows is not None:
            beside, of_rows = path.with_name(f"{path.stem}_{kind}.npy"), hashlib.sha256()
            with npy_file(beside, (len(indices), *rows.shape[1:]), rows.dtype, of_rows) as write:
                write(rows[indices])
            found[f"{kind}_sha256"] = of_rows.hexdigest()
    mean, std = moments(histograms.sum(0))
    return SplitSummary(count=len(indices), sha256=digest.hexdigest(), mean=mean, std=std, **found), histograms


def binarise(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """255 with probability pixel / 255, else 0: exact, since u is uniform on the 255 values 0..254."""
    threshold = rng.integers(0, 255, pixels.shape, dtype=np.uint8)
    return np.where(pixels > threshold, np.uint8(255), np.uint8(0))


def moments(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of pixels on [0, 1] from the counts of the 256 values: exact integers until last."""
    n, first, second = (int(histogram @ np.arange(256) ** power) for power in (0, 1, 2))
    return first / n / 255, math.sqrt(n * second - first**2) / n / 255


def split_numbers(
    histograms: NDArray[np.int64], labels: NDArray[np.int64] | None, classes: Sequence[str] | None
) -> dict[str, object]:
    """Lowest and highest value, mean and deviation of each channel, from counts [C, 256]; images of each class."""
    channels = []
    for histogram in histograms:
        found, (mean, std) = np.flatnonzero(histogram), moments(histogram)
        channels.append({"lowest": int(found[0]), "highest": int(found[-1]), "mean": mean, "std": std})
    if labels is None:
        return {"channels": channels}
    counts = np.bincount(labels, minlength=len(classes or ())).tolist()
    names = classes or range(len(counts))
    return {"channels": channels, "classes": [list(pair) for pair in zip(names, counts, strict=True)]}


def contact_sheet(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file with the first images of [N, C, H, W] in rows, large ones thinned out to every n-th pixel."""
    from PIL import Image

    step = -(-max(pixels.shape[2:]) // LARGEST)
    images = pixels[: ROWS * COLUMNS, :, ::step, ::step].transpose(0, 2, 3, 1)  # N x h x w x C
    count, height, width, channels = images.shape
    sheet = np.full((-(-count // COLUMNS), height + GAP, COLUMNS, width + GAP, channels), 255, np.uint8)
    for index, image in enumerate(images):
        sheet[index // COLUMNS, :height, index % COLUMNS, :width] = image
    sheet = sheet.reshape(sheet.shape[0] * sheet.shape[1], -1, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, format="PNG")
    return buffer.getvalue()
