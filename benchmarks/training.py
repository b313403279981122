"""Training 784-400-20 on batches of 128, one thread: against the matrix peak, a plain loop, and its memory bar.

Floating-point operations are those of the matrix products alone. With P = 784 400 + 400 40 + 20 400 + 400 784 weights
and batch B, forward is 2 B P; backward is 2 B P for the weights and 2 B (P - 784 400) for the activations, since the
first layer's input needs no gradient. Together 2 B (3 P - 784 400) = 420 million a step. Everything else that a step
does (picking the batch, noise, activations, the bound, clipping, Adam) counts as time, not as work.

Times are the best of several short bursts, taken in turns: other programs run on the machine too.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.plain_loop import BATCH, HIDDEN, LATENT, PIXELS, PlainLoop
from benchmarks.row import Row
from vaeline import config
from vaeline.config.train import Train
from vaeline.training.device import Settings
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = PIXELS * HIDDEN + HIDDEN * 2 * LATENT + LATENT * HIDDEN + HIDDEN * PIXELS
STEP_FLOP = 2 * BATCH * (3 * WEIGHTS - PIXELS * HIDDEN)
TURNS = 5
IMAGES = 70_000  # as in Fashion-MNIST
GIB = 2**30


def rows() -> list[Row]:
    """The training's measures."""
    memory = peak_memory()
    with one_thread():
        peak, ours, plain = 0.0, 0.0, 0.0
        for _ in range(TURNS):
            peak = max(peak, matrix_peak())
            ours = max(ours, training_speed())
            plain = max(plain, plain_loop_speed())
    achieved = ours / BATCH * STEP_FLOP
    allowed = 2 * IMAGES * PIXELS + GIB
    return [
        Row(
            "training 784-400-20, of the float32 matrix peak",
            f"{achieved / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s",
            achieved / peak,
            ">= 0.70",
            achieved >= 0.70 * peak,
        ),
        Row(
            "training, over a DataLoader + ToTensor loop",
            f"{ours:,.0f} / {plain:,.0f} img/s",
            ours / plain,
            ">= 2.50",
            ours >= 2.5 * plain,
        ),
        Row(
            "training's peak memory, of 2 x data + 1 GiB",
            f"{memory / 2**20:.0f} of {allowed / 2**20:.0f} MiB",
            memory / allowed,
            "<= 1.00",
            memory <= allowed,
        ),
    ]


@contextmanager
def one_thread() -> "Iterator[None]":
    """PyTorch with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_peak() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / best(lambda: a @ b, repeats=30)


class Speedometer:
    """A tracker that keeps the best speed."""

    def __init__(self) -> None:
        self.best = 0.0

    def flush(self) -> None:
        """Do nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Images a second over the steps since the last report."""
        self.best = max(self.best, values.get("train/images_per_second", 0.0))

    def image(self, key: str, image: Any, step: int) -> None:
        """Nothing to do."""


def sections() -> tuple[config.Model, Train]:
    """Params of the network, with the likelihood and the optimiser's settings that params.yaml has."""
    network = config.Mlp(kind="mlp", hidden=[HIDDEN])
    model = config.Model(latent_dim=LATENT, network=network, likelihood=config.Gaussian(kind="gaussian"))
    options = Train(
        objective="elbo",
        beta=1.0,
        warmup_epochs=0,
        free_bits=0.0,
        epochs=1,
        batch_size=BATCH,
        learning_rate=0.001,
        gradient_clip=1000.0,  # as rare as it should be
        patience=1,
        seed=1,
    )
    return model, options


def pixels(count: int) -> np.ndarray:
    """Grey images of a soft bump each: something to learn, so that the gradient is like that of real images."""
    rng = np.random.default_rng(0)
    centre, grid = rng.uniform(6, 22, (2, count, 1)), np.arange(28)
    row, column = np.exp(-np.square(grid - centre) / 16)
    return (255 * row[:, None, :, None] * column[:, None, None, :]).astype(np.uint8)


def training_speed() -> float:
    """Images a second of vaeline's trainer, as it reports them itself."""
    speed = Speedometer()
    model, options = sections()
    splits = Splits(pixels(40_000), pixels(500), "none")
    with tempfile.TemporaryDirectory() as folder:
        device, often = torch.device("cpu"), Settings(log_every=25)
        train(model, options, splits, device=device, checkpoints=Path(folder), tracker=speed, settings=often)
    return speed.best


def plain_loop_speed() -> float:
    """Images a second of the plain loop."""
    loop = PlainLoop(torch.from_numpy(pixels(5000)[:, 0]))
    return 10 * BATCH / best(lambda: loop.steps(10), repeats=3)


def peak_memory() -> int:
    """Bytes that a process has in memory at most while it trains on Fashion-MNIST's size from a file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.training"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Train for an epoch with checkpoints, and print this process's peak memory in bytes."""
    model, options = sections()
    with tempfile.TemporaryDirectory() as folder:
        maps = []
        for name, count in (("train", IMAGES * 5 // 7), ("validation", IMAGES // 7)):
            target = np.lib.format.open_memmap(f"{folder}/{name}.npy", "w+", np.uint8, (count, 1, 28, 28))
            target[:] = 100
            maps.append(np.load(f"{folder}/{name}.npy", mmap_mode="r"))
        every = Settings(checkpoint_seconds=0.5)
        train(
            model,
            options,
            Splits(maps[0], maps[1], "none"),
            device=torch.device("cpu"),
            checkpoints=Path(folder) / "checkpoints",
            settings=every,
        )
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) * 1024)


if __name__ == "__main__":
    main()
