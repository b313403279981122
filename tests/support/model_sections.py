"""Sections `model` of the params, one of each kind, and the description that a saved model of one has."""

from typing import Any

from vaeline import config

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
VAMP, MIXTURE = {"kind": "vamp", "components": 4}, {"kind": "mixture", "components": 2}
FULL, FITTED = MIXTURE | {"covariance": "full"}, {"kind": "fitted", "components": 3, "during": VAMP}
LIKELIHOODS: list[dict[str, Any]] = [
    {"kind": "bernoulli"},
    {"kind": "gaussian", "sigma": "learned"},
    {"kind": "gaussian", "sigma": 0.1},
    {"kind": "continuous-bernoulli"},
    {"kind": "discretised-logistic"},
    {"kind": "laplace"},
]


def section(network: dict[str, Any] = MLP, likelihood: dict[str, Any] = LIKELIHOODS[1]) -> config.Model:
    return config.Model.model_validate({"latent_dim": 3, "network": network, "likelihood": likelihood})


def described(model: config.Model, objective: str = "elbo") -> dict[str, Any]:
    data = {"digest": "ab" * 32, "source": "digits", "binarise": "none"}
    return {"model": model.model_dump(mode="json"), "objective": objective, "data": data}
