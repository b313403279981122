"""Sections `model` of the params, one of each kind, and small saved models of them."""

from pathlib import Path
from typing import Any

import torch

from vaeline import config
from vaeline.serving.model_files import LoadedModel, load_model, save_model
from vaeline.training.build import build_model

SHAPE = (1, 9, 7)
MLP: dict[str, Any] = {"kind": "mlp", "hidden": [6], "activation": "tanh"}
CONV: dict[str, Any] = {"kind": "conv", "channels": [3, 4], "hidden": 6, "activation": "relu"}
GATED: dict[str, Any] = {"kind": "gated", "hidden": [6, 5]}
AUTOENCODER_KL: dict[str, Any] = {  # f = 2
    "kind": "autoencoder-kl",
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 1,
    "norm_num_groups": 2,
}
NETWORKS = {"mlp": MLP, "conv": CONV, "gated": GATED, "kl": AUTOENCODER_KL}
VAMP, MIXTURE = {"kind": "vamp", "components": 4}, {"kind": "mixture", "components": 2}
FULL, FITTED = MIXTURE | {"covariance": "full"}, {"kind": "fitted", "components": 3, "during": VAMP}
PRIORS = {"vamp": VAMP, "mixture": MIXTURE, "full": FULL, "fitted": FITTED}
LIKELIHOODS: list[dict[str, Any]] = [
    {"kind": "bernoulli"},
    {"kind": "gaussian", "sigma": "learned"},
    {"kind": "gaussian", "sigma": 0.1},
    {"kind": "continuous-bernoulli"},
    {"kind": "discretised-logistic"},
    {"kind": "laplace"},
]


def section(network: dict[str, Any] = MLP, likelihood: dict[str, Any] = LIKELIHOODS[1], **more: Any) -> config.Model:
    return config.Model.model_validate({"latent_dim": 3, "network": network, "likelihood": likelihood} | more)


def described(model: config.Model, objective: str = "elbo") -> dict[str, Any]:
    data = {"digest": "ab" * 32, "source": "digits", "binarise": "none"}
    return {"model": model.model_dump(mode="json"), "objective": objective, "data": data}


def saved(
    folder: Path,
    model: config.Model,
    shape: tuple[int, int, int] = SHAPE,
    objective: str = "elbo",
    gain: float = 1.0,
    **description: Any,
) -> LoadedModel:
    """A model as it is drawn, its networks' weights `gain` times as large, saved and read back."""
    vae = build_model(model, shape, objective, seed=1)
    with torch.no_grad():
        for parameter in (*vae.encoder.parameters(), *vae.decoder.parameters()):
            parameter.mul_(gain)
    save_model(folder, vae, described(model, objective) | description)
    return load_model(folder)
