"""`vaeline score`: ELBOs of images as a table, and a verdict whether they are like the test data."""

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaeline.data.prepared import centre
from vaeline.data.sources.dataset import check_brightness
from vaeline.data.sources.images import read_folder, scan
from vaeline.data.sources.npz import read_npz
from vaeline.errors import UserError
from vaeline.evaluation.drift import Verdict, compare, quantiles
from vaeline.io.atomic_write import write_file
from vaeline.io.safe_read import shown
from vaeline.serving.model_files import LoadedModel

if TYPE_CHECKING:
    from vaeline.serving.inference import TrainedModel


def score_images(
    model: "TrainedModel",
    uri: str,
    images: Path,
    out: Path,
    level: float,
    seed: int,
    fit: Mapping[str, str],
    print_line: Callable[[str], None],
) -> Verdict:
    """Score images, write a table (CSV: image, ELBO in nats, quantile in the reference), print and return the verdict.

    `images` is a folder of PNG or JPEG images, or an .npz file; `fit` ("fit": crop, stretch or pad, "background": white
    or black) resizes and converts a folder's files, as data.source does before training. Raises UserError where the
    model has no ELBO or cannot read the images, and, once the table is written, where the model has no reference.
    """
    vae, reference = model.loaded.vae, model.reference
    if vae.deterministic:
        raise UserError(f"{uri}: is a plain autoencoder, which has no ELBO; allowed: a VAE")
    names, pixels = _read_images(images, model.loaded, fit)
    elbo = model.score(pixels, seed).astype(np.float64)
    if not np.isfinite(elbo).all():
        first = int(np.argmin(np.isfinite(elbo)))
        raise UserError(f"image {shown(names[first])}: its ELBO is {elbo[first]}: it is too far from the model's data")
    places = [""] * len(elbo) if reference is None else [f"{place:.5f}" for place in quantiles(reference, elbo)]
    table = io.StringIO()
    rows = zip(names, (f"{value:.6g}" for value in elbo), places, strict=True)
    csv.writer(table, lineterminator="\n").writerows([("image", "elbo", "quantile"), *rows])
    write_file(out, table.getvalue().encode(errors="surrogateescape"))
    if reference is None:
        raise UserError(
            f"{uri}: has no ELBOs of test images with it, so there is no verdict (the scores are in {out}); "
            "allowed: a model of the registry, registered by this version of vaeline"
        )
    verdict = compare(reference, elbo, level)
    outside, expected = f"{verdict.outside:.1%}", f"{verdict.outside_expected:.1%}"
    print_line(f"images        {len(elbo)}, compared with {len(reference)} test images of the model")
    print_line(f"median ELBO   {np.median(elbo):.2f} nats, {verdict.median_shift:+.2f} from theirs")
    print_line(f"far off       {outside} are outside their central range, {expected} expected")
    print_line(f"p-value       {verdict.p_value:.2g} (shape {verdict.p_shape:.2g}, tails {verdict.p_tails:.2g})")
    conclusion = "drift: the images do not" if verdict.drift else "no drift: the images"
    print_line(f"{conclusion} look like the test data (level {level:g})")
    return verdict


def _read_images(path: Path, loaded: LoadedModel, fit: Mapping[str, str]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names (a file's path within its folder, or an index) and pixels [N, C, H, W]."""
    vae, wanted = loaded.vae, _described(loaded.vae.shape)
    if path.is_dir():
        try:
            pixels = read_folder(path, **({**loaded.fitted, **fit} if fit else {}))[0].pixels
            pixels = centre(pixels, vae.shape) if fit else pixels
        except UserError as error:
            keys = r"data\.source\.size and data\.source\.mode|data\.source\.mode"
            raise UserError(re.sub(keys, "--fit crop", str(error))) from None
        names = [file.relative_to(path).as_posix() for file, _ in scan(path)[1]]
    elif path.is_file():
        pixels = read_npz(path).pool.pixels
        names = [str(index) for index in range(len(pixels))]
    else:
        raise UserError(f"{path}: does not exist; allowed: a folder of PNG or JPEG images, or an .npz file")
    if pixels.shape[1:] != vae.shape:
        way_out = " (--fit crop makes them so)" if path.is_dir() else ""
        raise UserError(f"{path}: its images are {_described(pixels.shape[1:])}; the model's: {wanted}{way_out}")
    check_brightness(pixels, str(path))
    if vae.likelihood.measure == "binary" and (grey := ((pixels > 0) & (pixels < 255)).any((1, 2, 3))).any():
        name = shown(names[int(np.argmax(grey))])
        raise UserError(f"{path}: image {name} has grey pixels; the model takes black and white: 0 and 255")
    return names, pixels


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} pixels in {'L' if shape[0] == 1 else 'RGB'}"
