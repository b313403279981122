"""A synthetic data set whose factors are known: shape, size, position, angle, hue."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.catalogue import SHAPE_NAMES
from vaeline.io.npy import npy_file

FACTORS = ("shape", "size", "x", "y", "angle", "hue")
BLOCK = 1 << 20  # pixels drawn at once

Floats = NDArray[np.float32]


def write_shapes(folder: Path, count: int, side: int, seed: int) -> None:
    """Write images.npy (N x 3 x S x S), labels.npy (N, the shape) and factors.npy (N x 6) into `folder`.

    A larger `count` begins with the same images.
    """
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // side**2)
    with (
        npy_file(folder / "images.npy", (count, 3, side, side), np.uint8) as images,
        npy_file(folder / "labels.npy", (count,), np.int64) as labels,
        npy_file(folder / "factors.npy", (count, len(FACTORS)), np.float64) as factors,
    ):
        for start in range(0, count, step):
            drawn = draw_factors(rng, min(step, count - start))
            images(render(drawn, side))
            labels(drawn[:, 0])
            factors(drawn)


def draw_factors(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Independent uniform factors, N x 6: shape 0..2; size, the radius of the circle around the shape, on [.12, .24);
    x and y of its centre on [.26, .74), all three in image sides; angle on [0, pi / 2), below the square's symmetry;
    hue on [0, 1). Every shape lies wholly in the image.
    """
    unit = rng.random((count, len(FACTORS)))
    low = np.array([0, 0.12, 0.26, 0.26, 0, 0])
    high = np.array([len(SHAPE_NAMES), 0.24, 0.74, 0.74, np.pi / 2, 1])
    factors: NDArray[np.float64] = low + unit * (high - low)
    factors[:, 0] = np.floor(factors[:, 0])
    return factors


def render(factors: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Draw factors N x 6 as N x 3 x S x S: each pixel is the colour times its coverage by the shape,
    clip(1/2 - d, 0, 1), where d is the signed distance in pixels from its centre to the shape's edge.
    """
    images = np.empty((len(factors), 3, side, side), np.uint8)
    centres = np.arange(side) + 0.5
    for shape in range(len(SHAPE_NAMES)):
        chosen = np.flatnonzero(factors[:, 0] == shape)
        _, size, x, y, angle, hue = factors[chosen].T
        across = (centres - (x * side)[:, None]).astype(np.float32)[:, None, :]  # n x 1 x S
        along = (centres - (y * side)[:, None]).astype(np.float32)[:, :, None]  # n x S x 1
        cos, sin, radius = (
            part.astype(np.float32)[:, None, None] for part in (np.cos(angle), np.sin(angle), size * side)
        )
        distance = _distance(shape, across * cos + along * sin, along * cos - across * sin, radius)
        coverage = np.clip(0.5 - distance, 0, 1)  # n x S x S
        images[chosen] = coverage[:, None] * (255 * colours(hue))[:, :, None, None] + np.float32(0.5)
    return images


def _distance(shape: int, right: Floats, down: Floats, radius: Floats) -> Floats:
    """Signed distance to the edge of a shape, n x S x S, from points in the shape's own axes."""
    distance: Floats
    if SHAPE_NAMES[shape] == "square":
        distance = np.maximum(np.abs(right), np.abs(down)) - radius * np.float32(np.sqrt(0.5))
    elif SHAPE_NAMES[shape] == "triangle":
        edge = np.abs(right) * np.float32(np.sqrt(0.75)) - down * np.float32(0.5)
        distance = np.maximum(edge, down) - radius * np.float32(0.5)
    else:  # ellipse, half as high as wide: to first order f (f - 1) / |grad f^2 / 2| with f the elliptic radius
        u, v = right / radius, down / (radius / 2)
        f = np.maximum(np.sqrt(u * u + v * v), np.float32(1e-3))
        slope = np.sqrt((u / radius) ** 2 + (v / (radius / 2)) ** 2)
        distance = f * (f - 1) / np.maximum(slope, np.float32(1e-6))
    return distance


def colours(hue: NDArray[np.float64]) -> Floats:
    """Hue on [0, 1) to full-saturation RGB on [0, 1], n x 3."""
    offsets = np.array([0.0, 4.0, 2.0])
    rgb: Floats = np.clip(np.abs((6 * hue[:, None] + offsets) % 6 - 3) - 1, 0, 1).astype(np.float32)
    return rgb
