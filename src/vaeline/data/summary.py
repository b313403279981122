"""What prepared data look like: numbers of a split, by channel and class, and a sheet of images."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 8, 16  # images of the sheet
GAP, LARGEST = 2, 64  # pixels between images, and of an image's longer side


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
