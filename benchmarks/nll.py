"""`python -m benchmarks.nll`: what log p(x) as `evaluate` reports it misses of its long-run value, by likelihood.

Each likelihood with the other params of `params.yaml` is trained for EPOCHS on Fashion-MNIST, and IMAGES test images
are scored about p(z|x)'s mode with `evaluate.importance_samples` samples and with LONG; one likelihood also by
annealing. Both are lower bounds in expectation. The table is benchmarks/results/nll.md.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.elbo_time import fashion_mnist
from benchmarks.training import one_thread
from vaeline import config
from vaeline.core.estimators import annealed_log_likelihood, observe
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.evaluation.split_metrics import Pixels, log_likelihood
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

EPOCHS, IMAGES, LONG, POSTERIOR = 3, 200, 4000, 100
ANNEALED_IMAGES, TEMPERATURES, CHAINS = 20, 1000, 4
LIKELIHOODS: dict[str, dict[str, str | bool]] = {
    "bernoulli": {"kind": "bernoulli"},
    "gaussian": {"kind": "gaussian"},
    "gaussian, truncated": {"kind": "gaussian", "truncated": True},
    "laplace": {"kind": "laplace"},
    "continuous-bernoulli": {"kind": "continuous-bernoulli"},
    "discretised-logistic": {"kind": "discretised-logistic"},
    "discretised-logistic, shared": {"kind": "discretised-logistic", "scale": "shared"},
}


def trained(params: config.Params, likelihood: dict[str, str | bool], splits: Splits) -> VAE:
    """Briefly."""
    section = config.Model.model_validate(params.model.model_dump(mode="json") | {"likelihood": likelihood})
    options = params.train.model_copy(update={"epochs": EPOCHS, "precision": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        result = train(section, options, splits, device=torch.device("cpu"), checkpoints=Path(folder))
    return result.model.eval().requires_grad_(False)


def row(name: str, vae: VAE, pixels: Pixels, few: int) -> str:
    """A row of the table."""
    begun = time.process_time()
    short, effective = log_likelihood(vae, pixels, few, 1, "laplace")
    seconds = time.process_time() - begun
    long, many = log_likelihood(vae, pixels, LONG, 1, "laplace")
    of_q, _ = log_likelihood(vae, pixels, POSTERIOR, 1)
    sizes = f"{np.median(effective):.0f} of {few} | {np.median(many):.0f} of {LONG}"
    missed, missed_by_q = (Measured.of(long - values).text() for values in (short, of_q))
    return f"| {name} | {-long.mean():.2f} | {missed} | {missed_by_q} | {sizes} | {seconds:.1f} |"


def annealed(vae: VAE, pixels: Pixels) -> str:
    """How far annealing is above the long run, mean over images."""
    long, _ = log_likelihood(vae, pixels, LONG, 1, "laplace")
    x = observe(vae, torch.from_numpy(np.array(pixels)), range(len(pixels)), seed=1)
    generator = torch.Generator().manual_seed(1)
    temperatures = torch.linspace(0, 1, TEMPERATURES + 1) ** 2
    found, _, _ = annealed_log_likelihood(vae, x, temperatures, generator, chains=CHAINS)
    return Measured.of(found.numpy() - long).text()


def main(names: list[str]) -> None:
    """Print the table."""
    params, data, draws = config.read_params(Path("params.yaml")), fashion_mnist(), np.random.default_rng(1)
    assert data.test
    few = params.evaluate.importance_samples
    grey = {
        "train": data.pool.pixels[:50_000],
        "held": data.pool.pixels[50_000:51_000],
        "test": data.test.pixels[:IMAGES],
    }
    black = {key: np.where(draws.random(grey[key].shape) * 255 < grey[key], 255, 0).astype(np.uint8) for key in grey}
    print(f"| likelihood | NLL, k = {LONG} | missed at {few} | missed by q at {POSTERIOR} | effective | | CPU-s |")
    print("|---|---|---|---|---|---|---|")
    with one_thread():
        for name in names or LIKELIHOODS:
            binary = name == "bernoulli"
            seen = black if binary else grey
            splits = Splits(grey["train"], seen["held"], "dynamic" if binary else "none")
            vae = trained(params, LIKELIHOODS[name], splits)
            print(row(name, vae, seen["test"], few), flush=True)
            if name == "laplace":
                print(f"laplace, AIS minus k = {LONG}: {annealed(vae, seen['test'][:ANNEALED_IMAGES])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
