"""Claim: one statement of the theory, as data; and the context that all claims are made from."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline import config
from vaeline.config.data import Binarise
from vaeline.config.train import Train
from vaeline.core.model import VAE
from vaeline.data.sources.dataset import Split
from vaeline.plotting.charts import Picture
from vaeline.training import checkpoint
from vaeline.training.device import Settings
from vaeline.training.history import Epoch
from vaeline.training.randomness import mix
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

BRIEFLY = {"beta": 1.0, "warmup_epochs": 0, "free_bits": 0.0, "batch_size": 100, "learning_rate": 2e-3}
VALIDATION = 500  # images of a brief training


@dataclass(frozen=True)
class Claim:
    """One statement; all text is plain, `numbers` is its part of reports/theory.json."""

    key: str
    title: str
    equation: str
    words: Sequence[str] = ()  # paragraphs
    numbers: dict[str, Any] = field(default_factory=dict)  # none where the claim does not apply to the model
    table: Sequence[Sequence[str]] = ()  # the header first
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Context:
    """A trained model, its data, its history and the params."""

    model: VAE
    section: config.Model
    objective: str
    binarise: Binarise
    train: Split
    validation: Split
    test: Split
    history: Sequence[Epoch]
    options: config.Theory
    device: torch.device

    def taken(self, split: Split, count: int) -> Split:
        """At most `count` images of a split, chosen by the seed."""
        return split.take(count, self.options.seed, in_order=True)

    def trained(self, section: config.Model, objective: str) -> VAE:
        """A model of the section under N(0, I), trained briefly by the training library: the same images and order."""
        epochs, seed = self.options.epochs, self.options.seed
        own = {"objective": objective, "seed": seed, "epochs": epochs, "patience": epochs, "gradient_clip": 100.0}
        options = Train.model_validate(BRIEFLY | own)
        data, held_out = self.taken(self.train, self.options.training_images), self.taken(self.validation, VALIDATION)
        splits = Splits(data.pixels, held_out.pixels, self.binarise)
        section = section.model_copy(update={"prior": config.StandardNormal(kind="standard-normal")})
        settings = Settings(checkpoint_seconds=1e9, log_every=2**31)
        with tempfile.TemporaryDirectory(prefix="vaeline-theory-") as folder, checkpoint.owned(Path(folder) / "run"):
            place = Path(folder) / "run"
            result = train(section, options, splits, device=self.device, checkpoints=place, settings=settings)
        return result.model.requires_grad_(False).eval().to(self.device)

    def generator(self, stream: str) -> torch.Generator:
        """Random numbers, drawn on the CPU, that belong to this stream alone."""
        return torch.Generator().manual_seed(mix(self.options.seed, f"theory {stream}"))

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal noise on the device."""
        return torch.randn(shape, generator=self.generator(stream)).to(self.device)

    def observed(self, pixels: NDArray[np.uint8], stream: str, *, training: bool = False) -> Tensor:
        """Images in the likelihood's data space, with fresh noise where it wants any: [N, C, H, W]."""
        wants_noise = self.model.likelihood.uses_noise or (training and self.binarise == "dynamic")
        noise = torch.rand(pixels.shape, generator=self.generator(f"{stream} uniform")) if wants_noise else None
        return self.model.likelihood.observe(torch.from_numpy(pixels), noise).to(self.device)

    def tested(self, count: int) -> Tensor:
        """The first `count` of the random test images that the claims share, in data space: [N, C, H, W]."""
        return self.observed(self.taken(self.test, self.options.images)[:count].pixels, "tested")
