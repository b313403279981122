"""CPU-seconds of training to one test loss: vaeline against the popular example script's loop, by turns, one thread.

784-400-20, Bernoulli, Fashion-MNIST binarised anew each time an image is seen. The loop trains on all 60,000 images for
ten epochs; vaeline, whose validation after each epoch counts as training, holds 1,000 out. Imports, the reading of
files and the test split's loss are left out on both sides.

`python -m benchmarks.elbo_time` trains both to the end with three seeds (six minutes); `rows` takes one of the loop's
ten epochs, which cost the same, and vaeline's whole training.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_loop import HIDDEN, LATENT, PIXELS, PlainLoop
from benchmarks.row import Row
from benchmarks.training import one_thread
from vaeline import config
from vaeline.config.data import Download
from vaeline.config.train import Train
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms
from vaeline.data.sources.dataset import Dataset
from vaeline.data.sources.public import fetch_public
from vaeline.data.sources.readers import read_source
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

GOAL, LOOP_EPOCHS, HELD_OUT = 242.29, 10, 1000  # nats: the loop's test loss after ten epochs, mean of three seeds
SOURCE = Download(kind="fashion-mnist")
SEEDS = (1, 2, 3)
MODEL = config.Model(
    latent_dim=LATENT,
    network=config.Mlp(kind="mlp", hidden=[HIDDEN]),
    likelihood=config.Bernoulli(kind="bernoulli"),
)
TRAIN = Train(
    objective="elbo",
    beta=1.0,
    warmup_epochs=0,
    free_bits=0.0,
    epochs=4,
    batch_size=320,
    learning_rate=0.012,
    adam_betas=(0.9, 0.99),
    gradient_clip=1000.0,
    precision="auto",
    patience=4,
    seed=1,
)


def rows() -> list[Row]:
    """Ten of the loop's epochs over vaeline's training, where that reaches the loop's test loss."""
    data = fashion_mnist()
    with one_thread():
        found = [(*ours(data, seed), plain(data, seed, epochs=1)[0] * LOOP_EPOCHS) for seed in SEEDS]
    seconds, losses, loop = zip(*found, strict=True)
    ratio, loss = (
        min(loop) / min(seconds),
        sum(losses) / len(losses),
    )  # the least: other programs run on the machine too
    return [
        Row(f"CPU-s to a test loss of {GOAL}", f"{min(loop):.1f} / {min(seconds):.1f} s", ratio, ">= 10", ratio >= 10),
        Row("its test loss, mean of three seeds", f"{loss:.2f} nats", None, f"<= {GOAL}", loss <= GOAL),
    ]


def fashion_mnist() -> Dataset:
    """Fashion-MNIST's two splits."""
    with tempfile.TemporaryDirectory() as folder:
        fetch_public(SOURCE.kind, Path(folder), Path("data/raw"))
        return read_source(SOURCE, Path(folder))


def ours(data: Dataset, seed: int, options: Train = TRAIN) -> tuple[float, float]:
    """CPU-seconds and test loss of vaeline."""
    pixels, options = data.pool.pixels, options.model_copy(update={"seed": seed})
    held_out = np.where(np.random.default_rng(seed).random(pixels[:HELD_OUT].shape) * 255 < pixels[:HELD_OUT], 255, 0)
    splits = Splits(pixels[HELD_OUT:], held_out.astype(np.uint8), "dynamic")
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        vae = train(MODEL, options, splits, device=torch.device("cpu"), checkpoints=Path(folder)).model
        seconds = time.process_time() - begun
    return seconds, test_loss(data, lambda x: negative_elbo(vae, x))


def negative_elbo(vae: VAE, x: Tensor) -> Tensor:
    """Of one posterior sample, summed over images [B, 784]."""
    return -elbo_terms(vae, x.view(-1, *vae.shape), torch.randn(len(x), LATENT)).elbo.sum()


def plain(data: Dataset, seed: int, epochs: int = LOOP_EPOCHS) -> tuple[float, float]:
    """CPU-seconds and test loss of the loop."""
    torch.manual_seed(seed)
    loop = PlainLoop(torch.from_numpy(data.pool.pixels[:, 0].copy()), binarise=True)
    begun = time.process_time()
    for _ in range(epochs):
        loop.steps()
    return time.process_time() - begun, test_loss(data, loop.model.loss)


@torch.no_grad()
def test_loss(data: Dataset, loss: Callable[[Tensor], Tensor]) -> float:
    """Mean over the test split, in nats an image, of a loss summed over a batch; the same binary pixels for all."""
    assert data.test
    torch.manual_seed(0)
    images = torch.from_numpy(data.test.pixels.reshape(-1, PIXELS).copy())
    return sum(loss(torch.bernoulli(x / 255)).item() for x in images.split(500)) / len(images)


def main() -> None:
    """Both to the end, as a table."""
    print("| seed | loop: CPU-s | test loss | vaeline: CPU-s | test loss | times sooner |\n|---|---|---|---|---|---|")
    data = fashion_mnist()
    with one_thread():
        for seed in SEEDS:
            (own, loss), (loop, theirs) = ours(data, seed), plain(data, seed)
            print(f"| {seed} | {loop:.1f} | {theirs:.2f} | {own:.1f} | {loss:.2f} | {loop / own:.1f} |", flush=True)


if __name__ == "__main__":
    main()
