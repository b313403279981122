"""A context small enough for a test: an untrained model on soft bumps, of a Bernoulli binarised dynamically."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oracles import ProbabilisticPCA, probabilistic_pca
from small_training import bumps
from vaeline import config
from vaeline.data.sources.dataset import Split
from vaeline.theory.claim import Context
from vaeline.training.build import build_model
from vaeline.training.history import Epoch
from workspaces import HURRY

TINY = config.Theory(images=12, importance_samples=20, training_images=60, epochs=1, seed=1)
EPOCH = Epoch(1, 10, -3.0, -2.0, 1.0, -3.5, -2.5, 1.0, None, 1.0, 1e-3)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, constants in HURRY.items():
        for name, value in constants.items():
            monkeypatch.setattr(f"vaeline.{module}.{name}", value)


def pca_context(options: config.Theory, mean_error: float = 0.0) -> tuple[ProbabilisticPCA, Context]:
    """A model with its true posterior, but for an error of its mean, on images that it drew, without labels."""
    pca = probabilistic_pca(pixels=64, scales=(0.2, 0.1), sigma=0.05, mean=0.5)
    vae = pca.vae(mean_error=mean_error).float().requires_grad_(False)
    vae.shape = (1, 1, 64)
    train, few = (Split(pca.pixels(1000, 2)[:count]) for count in (1000, 60))
    return pca, replace(small_context(options=options), model=vae, train=train, validation=few, test=few)


def small_context(
    likelihood: dict[str, Any] | None = None,
    objective: str = "elbo",
    *,
    labelled: bool = True,
    options: config.Theory = TINY,
    **model: Any,
) -> Context:
    section = {"latent_dim": 3, "network": {"kind": "mlp", "hidden": [16]}, "likelihood": {"kind": "gaussian"}}
    section |= {"likelihood": likelihood} if likelihood else {}
    checked = config.Model.model_validate(section | model)
    binary = checked.likelihood.kind == "bernoulli"
    splits = []
    for seed, count in enumerate((150, 40, 60)):
        pixels = bumps(count, seed)
        pixels = np.where(pixels > 99, 255, 0).astype(np.uint8) if binary and splits else pixels
        splits.append(Split(pixels, np.arange(count) % 3 if labelled else None))
    vae = build_model(checked, (1, 8, 8), objective, seed=3).eval().requires_grad_(False)
    return Context(
        model=vae,
        section=checked,
        objective=objective,
        binarise="dynamic" if binary else "none",
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        history=[EPOCH, replace(EPOCH, epoch=2)],
        options=options,
        device=torch.device("cpu"),
    )
