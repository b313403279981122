"""Importance-sampled log p(x) with 5000 samples, one thread: against the matrix peak, and its memory.

Floating-point operations are those of the matrix products alone: 2 a weight, of the encoder once an image and of the
decoder once a sample. Noise, activations, densities and the running log-sum-exp count as time, not as work. Times are
those of the one thread that computes, the best of several bursts, taken in turns: other programs run on the machine
too.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.row import Row
from benchmarks.training import one_thread
from vaeline import config
from vaeline.core.model import VAE
from vaeline.evaluation.split_metrics import Pixels, log_likelihood
from vaeline.training.build import build_model
from vaeline.training.device import keep_freed_memory

MANY, FEW = 5000, 100  # samples
SIZE, TURNS = 1024, 10
NETWORKS = {
    "params.yaml's network": config.Model(
        latent_dim=10,
        network=config.Mlp(kind="mlp", hidden=[400, 400], activation="silu"),
        likelihood=config.Gaussian(kind="gaussian"),
    ),
    "the Exemplar VAE's": config.Model(
        latent_dim=40,
        network=config.Gated(kind="gated", hidden=[300, 300]),
        likelihood=config.Bernoulli(kind="bernoulli"),
    ),
}


def rows() -> list[Row]:
    """The estimator's measures; the bar is for the network of params.yaml."""
    keep_freed_memory()
    measured = [_speed(name, model) for name, model in NETWORKS.items()]
    few, many = peak_memory(FEW), peak_memory(MANY)
    memory = Row(
        f"log p(x), memory with {MANY} samples over {FEW}",
        f"{many / 2**20:.0f} of {few / 2**20:.0f} MiB",
        many / few,
        "<= 1.05",
        many <= 1.05 * few,
    )
    return [*measured, memory]


def _speed(name: str, section: config.Model) -> Row:
    model, images = build(section), pixels(1)
    a, b = torch.randn(2, SIZE, SIZE)
    product = seconds = float("inf")
    with one_thread():
        for _ in range(TURNS):
            product = min(product, best(lambda: a @ b))
            seconds = min(seconds, best(lambda: log_likelihood(model, images, MANY, seed=1)))
    peak = 2 * SIZE**3 / product
    achieved = (weights(model.encoder) + MANY * weights(model.decoder)) * 2 / seconds
    barred = name.startswith("params.yaml")
    return Row(
        f"log p(x), {name}, of the float32 matrix peak",
        f"{achieved / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s",
        achieved / peak,
        ">= 0.60" if barred else "none",
        achieved >= 0.60 * peak or not barred,
    )


def best(run: Callable[[], object]) -> float:
    """Seconds of this thread's own time for the fastest of three runs."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return min(times)


def build(section: config.Model) -> VAE:
    """An untrained model for 28 x 28 pixels."""
    return build_model(section, (1, 28, 28), "elbo", 0).eval().requires_grad_(False)


def pixels(count: int) -> Pixels:
    """Random black and white images, which every likelihood knows."""
    return np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (count, 1, 28, 28))


def weights(module: nn.Module) -> int:
    """How many numbers its matrices hold."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def peak_memory(samples: int) -> int:
    """Bytes that a process has in memory at most while it scores 20 images with so many samples."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.estimators", str(samples)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def main(samples: int) -> None:
    """Score, and print this process's peak memory in bytes."""
    torch.set_num_threads(1)
    log_likelihood(build(NETWORKS["params.yaml's network"]), pixels(20), samples, seed=1)
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) * 1024)


if __name__ == "__main__":
    main(int(sys.argv[1]))
