"""NLL of a trained model with 5000 importance samples when there is no time for the whole test split.

`python -m benchmarks.exemplar FOLDER SECONDS`, FOLDER being where the pipeline ran. Every test image is scored with 100
samples; in a random order, as many as the time allows are scored with 5000 as well, the first 100 of them the same.
The whole split's mean is then estimated by the difference estimator (Cochran 1977, section 7.2, slope 1),

    mean over all of NLL-100 + mean over the n scored of (NLL-5000 - NLL-100),

unbiased over the choice of images, with the standard error of the second mean, times sqrt(1 - n / N).
"""

import csv
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vaeline.core.estimators import log_likelihood
from vaeline.core.model import VAE
from vaeline.core.priors import VampPrior
from vaeline.data.prepared import load_split
from vaeline.evaluation.split_metrics import Pixels, bound
from vaeline.serving.model_files import load_model
from vaeline.training.device import keep_freed_memory, pick_device, reproducible

COARSE, FINE = 100, 5000  # samples
IMAGES, CHUNK, SEED = 50, 25, 1


@dataclass(frozen=True)
class Scores:
    """Nats per image, in the order of `images`."""

    images: list[int]
    nll: list[float]

    def score(self, model: VAE, pixels: Pixels, images: list[int], samples: int) -> None:
        """Add images."""
        batch = torch.from_numpy(np.array(pixels[images]))
        found, _ = log_likelihood(model, batch, images, k=samples, seed=SEED, chunk=CHUNK)
        self.images.extend(images)
        self.nll.extend((-found).tolist())


def main(folder: Path, seconds: float) -> None:
    """Score, and write nll.json and nll.csv beside the model's folder."""
    end = time.monotonic() + seconds
    model, pixels = load_model(folder / "models").vae, load_split(folder / "data" / "prepared", "test")
    freeze(model)
    coarse, fine = Scores([], []), Scores([], [])
    for start in range(0, len(pixels), IMAGES):
        coarse.score(model, pixels, list(range(start, min(start + IMAGES, len(pixels)))), COARSE)
    order = np.random.default_rng(SEED).permutation(len(pixels)).tolist()
    while order and (not fine.images or time.monotonic() < end):
        fine.score(model, pixels, order[:IMAGES], FINE)
        del order[:IMAGES]
    elbo = bound(model, pixels, SEED)
    report = summary(np.array(coarse.nll), fine) | {"elbo": float(elbo.elbo.mean()), "kl": float(elbo.kl.mean())}
    (folder / "nll.json").write_text(json.dumps(report, indent=2) + "\n")
    with (folder / "nll.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", f"nll_{COARSE}", f"nll_{FINE}"])
        scored = zip(fine.images, fine.nll, strict=True)
        rows.writerows((i, f"{coarse.nll[i]:.4f}", f"{value:.4f}") for i, value in scored)
    print(json.dumps(report, indent=2))


def freeze(model: VAE) -> None:
    """A VampPrior's components do not change any more: encode its pseudo-inputs once, not once a chunk."""
    if isinstance(model.prior, VampPrior):
        components = model.prior.components()
        model.prior.bind(lambda _: components)


def summary(coarse: np.ndarray, fine: Scores) -> dict[str, float]:
    """Means and standard errors in nats per image; `coarse` holds all images."""
    exact, images, scored = np.array(fine.nll), len(coarse), len(fine.nll)
    difference = exact - coarse[fine.images]
    return {
        "images": images,
        f"nll_{COARSE}": float(coarse.mean()),
        f"nll_{FINE}_images": scored,
        f"nll_{FINE}_of_these": float(exact.mean()),
        f"nll_{FINE}": float(coarse.mean() + difference.mean()),
        f"nll_{FINE}_se": float(difference.std(ddof=1) * np.sqrt((1 - scored / images) / scored)),
        "nll_se_over_images": float(coarse.std(ddof=1) / np.sqrt(images)),
    }


if __name__ == "__main__":
    device = pick_device()
    keep_freed_memory()
    with reproducible(device), torch.no_grad():
        main(Path(sys.argv[1]), float(sys.argv[2]))
