"""Find the images that a registered model finds least like its test data.

    python examples/anomalies.py models:/NAME@champion IMAGES [--below 0.01] [--picture anomalies.png]

IMAGES is a folder of PNG or JPEG files or an .npz file with `images`. An image is an anomaly where its ELBO is below
that of all but a fraction `--below` of the model's own test images; the fraction is also how many of the images that
are like those will be called so. The picture shows the least likely images above what the model makes of them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import vaeline
from vaeline.data.sources.images import read_folder
from vaeline.data.sources.npz import read_npz
from vaeline.errors import UserError

SHOWN, EDGE = 10, 96  # images in the table and the picture, and pixels of each there


def main() -> None:
    """Score, print a table, write a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--below", type=float, default=0.01)
    parser.add_argument("--picture", type=Path, default=Path("anomalies.png"))
    options = parser.parse_args()
    try:
        find(options.model, options.images, options.below, options.picture)
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")


def find(uri: str, path: Path, below: float, picture: Path) -> None:
    """What `main` does, with its options as arguments."""
    model = vaeline.load(uri)
    if model.reference is None:
        raise UserError(f"{uri}: no ELBOs of test images travel with it; use a model of the registry")
    if not 0 < below < 1:
        raise UserError(f"--below: found {below}, allowed: above 0 and below 1")
    pixels = (read_folder(path)[0] if path.is_dir() else read_npz(path).pool).pixels
    elbo = model.score(pixels)
    threshold = np.quantile(model.reference, below)
    least = np.argsort(elbo)[:SHOWN]
    found, expected = int((elbo < threshold).sum()), below * len(pixels)
    print(f"{found} of {len(pixels)} images have an ELBO below {threshold:.2f} nats; {expected:.1f} expected")
    print(f"{'image':>8} {'ELBO':>12}")
    for index in least:
        print(f"{index:>8} {elbo[index]:>12.2f}{'  anomaly' if elbo[index] < threshold else ''}")
    draw(pixels[least] / 255, model.reconstruct(pixels[least]), picture)
    print(f"{picture}: the {len(least)} least likely images, and below each its reconstruction")


def draw(images: np.ndarray, reconstructions: np.ndarray, picture: Path) -> None:
    """Two rows of images [N, C, H, W], pixels on [0, 1], each about EDGE pixels high."""
    framed = [np.pad(row, ((0, 0), (0, 0), (1, 1), (1, 1))) for row in (images, reconstructions)]
    rows = [np.concatenate(list(row), axis=2) for row in framed]
    sheet = np.rint(255 * np.concatenate(rows, axis=1)).astype(np.uint8)  # [C, 2 (H + 2), N (W + 2)]
    times = max(1, EDGE // images.shape[2])
    sheet = np.moveaxis(sheet.repeat(times, axis=1).repeat(times, axis=2), 0, 2)
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(picture)


if __name__ == "__main__":
    main()
