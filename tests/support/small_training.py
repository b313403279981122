"""Trainings small enough for a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaeline import config
from vaeline.config.data import Binarise
from vaeline.training import checkpoint
from vaeline.training.device import Settings
from vaeline.training.history import Tracker
from vaeline.training.splits import Splits
from vaeline.training.step import Batch
from vaeline.training.trainer import Result, train

CPU = torch.device("cpu")
TRAIN = config.Train(
    objective="elbo",
    beta=1.0,
    warmup_epochs=0,
    free_bits=0.0,
    epochs=3,
    batch_size=16,
    learning_rate=0.004,
    gradient_clip=100.0,
    patience=10,
    seed=1,
)


def model(likelihood: Any = None, **changes: Any) -> config.Model:
    """Section `model`: 3 latent dimensions, one hidden layer of 16."""
    likelihood = likelihood or config.Gaussian(kind="gaussian")
    network = config.Mlp(kind="mlp", hidden=[16])
    return config.Model(**{"latent_dim": 3, "network": network, "likelihood": likelihood} | changes)


def options(**changes: Any) -> config.Train:
    """Section `train`."""
    return config.Train(**TRAIN.model_dump() | changes)


def bumps(count: int, seed: int, size: int = 8) -> np.ndarray:
    """Grey images of one soft bump each: uint8 [count, 1, size, size]."""
    rng = np.random.default_rng(seed)
    grid = np.arange(size)
    row, column = rng.uniform(1, size - 1, (2, count, 1, 1))
    square = (grid[:, None] - row) ** 2 + (grid[None, :] - column) ** 2
    return (255 * np.exp(-square / rng.uniform(1, 8, (count, 1, 1)))).astype(np.uint8)[:, None]


def splits(train_count: int = 100, binarise: Binarise = "none") -> Splits:
    """Bumps: `train_count` to train on, 30 to validate."""
    train, validation = bumps(train_count, seed=1), bumps(30, seed=2)
    if binarise == "none":
        return Splits(train, validation, binarise)
    black_and_white = [np.where(pixels > 99, 255, 0).astype(np.uint8) for pixels in (train, validation)]
    return Splits(train if binarise == "dynamic" else black_and_white[0], black_and_white[1], binarise)


def train_small(
    folder: Path,
    section: config.Train = TRAIN,
    data: Splits | None = None,
    *,
    tracker: Tracker | None = None,
    model_section: config.Model | None = None,
    settings: Settings | None = None,
) -> Result:
    """Train on the CPU, with checkpoints in `folder`."""
    with checkpoint.owned(folder):
        return train(
            model_section or model(),
            section,
            data or splits(),
            device=CPU,
            checkpoints=folder,
            tracker=tracker,
            settings=settings or Settings(),
        )


def same_weights(a: Result, b: Result) -> bool:
    """To the last bit."""
    first, second = a.model.state_dict(), b.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Recorder(Tracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[str, int, np.ndarray]] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        self.images.append((key, step, image))

    def values(self, name: str) -> dict[int, float]:
        """By step."""
        return {step: values[name] for step, values in self.points if name in values}


def batch(count: int = 16, latent_dim: int = 3, seed: int = 0) -> Batch:
    """A batch of bumps with its noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(bumps(count, seed)).float()
    uniform = torch.rand(pixels.shape, generator=generator)
    return Batch(pixels, uniform, torch.randn(count, latent_dim, generator=generator))


def step_config(beta: float = 1.0, **changes: Any) -> tuple[config.Train, float, torch.Tensor]:
    """Section `train`, rate 0.01 and the KL's weight; no free bits, nothing clipped."""
    return options(**{"gradient_clip": 1e9} | changes), 0.01, torch.tensor(beta)
