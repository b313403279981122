"""`vaeline score`: ELBOs of images as a table, and a verdict whether they are like the test data."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.images import read_folder, scan
from vaeline.data.sources.npz import read_npz
from vaeline.errors import UserError
from vaeline.evaluation.drift import Values, Verdict, compare, quantiles
from vaeline.io.atomic_write import write_file

if TYPE_CHECKING:
    from vaeline.serving.inference import TrainedModel

Shape = tuple[int, int, int]  # C, H, W


@dataclass(frozen=True)
class Batch:
    """Images to score."""

    names: list[str]  # a file's path within its folder, or an index
    pixels: NDArray[np.uint8]  # [N, C, H, W]


def score_images(
    model: "TrainedModel",
    uri: str,
    images: Path,
    out: Path,
    level: float,
    seed: int,
    fit: bool,
    print_line: Callable[[str], None],
) -> Verdict:
    """Score images, write the table to `out`, print the verdict.

    Raises UserError where the model has no ELBO or cannot read the images, and, once the table is written, where the
    model has no reference.
    """
    vae, reference = model.loaded.vae, model.reference
    if vae.deterministic:
        raise UserError(f"{uri}: is a plain autoencoder, which has no ELBO; allowed: a VAE")
    batch = read_batch(images, vae.shape, vae.likelihood.measure == "binary", fit)
    elbo = model.score(batch.pixels, seed).astype(np.float64)
    for name, value in zip(batch.names, elbo.tolist(), strict=True):
        if not math.isfinite(value):
            raise UserError(f"image {name}: its ELBO is {value}: it is too far from the model's data")
    try:
        write_file(out, table(batch, elbo, None if reference is None else quantiles(reference, elbo)))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    if reference is None:
        raise UserError(
            f"{uri}: has no ELBOs of test images with it, so there is no verdict (the scores are in {out}); "
            "allowed: a model of the registry, registered by this version of vaeline"
        )
    verdict = compare(reference, elbo, level)
    for line in report(verdict, elbo, reference):
        print_line(line)
    return verdict


def read_batch(path: Path, shape: Shape, binary: bool, fit: bool) -> Batch:
    """Read a folder of PNG or JPEG images, or the `images` of an .npz file, for a model of images of `shape`.

    `fit` resizes (stretches) and converts the files of a folder, as data.source.size and data.source.mode do before
    training. Raises UserError for images that the model cannot read.
    """
    if path.is_dir():
        batch = _read_folder(path, shape, fit)
    elif path.is_file():
        pixels = read_npz(path).pixels
        batch = Batch([str(index) for index in range(len(pixels))], pixels)
    else:
        raise UserError(f"{path}: does not exist; allowed: a folder of PNG or JPEG images, or an .npz file")
    if batch.pixels.shape[1:] != shape:
        way_out = " (--fit makes them so)" if path.is_dir() else ""
        raise UserError(
            f"{path}: its images are {_words(batch.pixels.shape[1:])}; the model's: {_words(shape)}{way_out}"
        )
    if binary:
        _refuse_grey(path, batch)
    return batch


def _read_folder(folder: Path, shape: Shape, fit: bool) -> Batch:
    channels, height, width = shape
    if fit and height != width:
        raise UserError(f"--fit: makes square images; the model's: {_words(shape)}")
    size, mode = (height, _mode(channels)) if fit else (None, None)
    try:
        pixels = read_folder(folder, size, mode)[0].pixels
    except UserError as error:
        text = str(error).replace("data.source.size and data.source.mode", "--fit")
        raise UserError(text.replace("data.source.mode to convert", "--fit to convert")) from None
    return Batch([path.relative_to(folder).as_posix() for path, _ in scan(folder)[1]], pixels)


def _refuse_grey(path: Path, batch: Batch) -> None:
    grey = ((batch.pixels > 0) & (batch.pixels < 255)).any((1, 2, 3))
    if grey.any():
        name = batch.names[int(np.argmax(grey))]
        raise UserError(f"{path}: image {name} has grey pixels; the model takes black and white: 0 and 255")


def table(batch: Batch, elbo: Values, quantile: Values | None) -> bytes:
    """CSV: image, its ELBO in nats, and the fraction of the model's test images that score lower, where known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "elbo", "quantile"])
    known: Sequence[float | None] = [None] * len(elbo) if quantile is None else quantile.tolist()
    for name, value, place in zip(batch.names, elbo.tolist(), known, strict=True):
        writer.writerow([name, f"{value:.6g}", "" if place is None else f"{place:.5f}"])
    return text.getvalue().encode()


def report(verdict: Verdict, elbo: Values, reference: Values) -> Iterator[str]:
    """The verdict in a few lines, the conclusion last."""
    yield f"images        {len(elbo)}, compared with {len(reference)} test images of the model"
    yield f"median ELBO   {np.median(elbo):.2f} nats, {verdict.median_shift:+.2f} from theirs"
    outside, expected = f"{verdict.outside:.1%}", f"{verdict.outside_expected:.1%}"
    yield f"far off       {outside} are outside their central range, {expected} expected"
    yield f"p-value       {verdict.p_value:.2g} (shape {verdict.p_shape:.2g}, tails {verdict.p_tails:.2g})"
    if verdict.drift:
        yield f"drift: the images do not look like the test data (level {verdict.level:g})"
    else:
        yield f"no drift: the images look like the test data (level {verdict.level:g})"


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _words(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{width} x {height} pixels in {_mode(channels)}"
