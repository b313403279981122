import copy
from pathlib import Path
from typing import Any

import pytest

from vaeline.config import Gaussian, parse_params, read_params, read_yaml
from vaeline.errors import UserError

PARAMS = Path(__file__).parents[1] / "params.yaml"

KL = {"kind": "autoencoder-kl"}


def _changed(**changes: Any) -> dict[str, Any]:
    content = copy.deepcopy(read_yaml(PARAMS))
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = content
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return content


def _error(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_params(_changed(**changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train__bata": 1}, "train.bata: unknown key; did you mean 'beta'? allowed: objective, estimator, "),
        ({"trian": {}}, "trian: unknown key; did you mean 'train'? allowed: data, model, train, "),
        ({"data__source__path": "x"}, "data.source.path: unknown key; allowed: kind (to remove it: "),
        ({"train__beta": ...}, "train.beta: missing"),
        ({"register": ...}, "register: missing"),
        ({"train__beta": "x"}, "train.beta: must be a valid number; found 'x'"),
        ({"train__beta": float("nan")}, "train.beta: must be a finite number; found nan"),
        ({"train__beta": float("inf")}, "train.beta: must be a finite number; found inf"),
        ({"train__beta": -1}, "train.beta: must be greater than or equal to 0; found -1"),
        ({"train__epochs": 2.0}, "train.epochs: must be a valid integer; found 2.0"),
        ({"train__epochs": True}, "train.epochs: must be a valid integer; found True"),
        ({"train": None}, "train: must be a section with keys; found None"),
        ({"data__source": "mnist"}, "data.source: must be a section with keys; found 'mnist'"),
        ({"data__source": {}}, "data.source: must have a kind; found {}"),
        ({"data__source__kind": "mnits"}, "data.source.kind: allowed: 'fashion-mnist', 'mnist', 'kmnist', "),
        ({"data__validation": 1.5}, "data.validation: must be a valid integer, or less than 1; found 1.5"),
        ({"data__test": "own"}, "data.test: must be 'auto', or a valid integer, or a valid number; found 'own'"),
        (
            {"model__likelihood": {"kind": "gaussian", "sigma": -1}},
            "model.likelihood.sigma: must be 'learned', or greater than 0; ",
        ),
        ({"model__network__hidden": []}, "model.network.hidden: must have at least 1 item "),
        ({"model__network__hidden": [9, "a"]}, "model.network.hidden.1: must be a valid integer; found 'a'"),
        ({"register__name": "a/b"}, "register.name: "),
        ({"train__warmup_epochs": 50}, "train: warmup_epochs (50) must not exceed epochs (14)"),
        ({"train__objective": "autoencoder", "train__beta": 2}, "train: objective 'autoencoder' has no KL"),
        ({"train__objective": "iwae", "train__beta": 2}, "train: objective 'iwae' has no KL: beta must be 1, "),
        ({"train__objective": "iwae", "train__free_bits": 0.1}, "train: objective 'iwae' has no KL: beta must be 1, "),
        ({"train__objective": "iwae", "train__warmup_epochs": 2}, "train: objective 'iwae' has no KL: beta must "),
        ({"train__objective": "autoencoder", "train__samples": 2}, "draws no samples: estimator must be pathwise, "),
        (
            {"train__objective": "autoencoder", "train__estimator": "sticking-the-landing"},
            "train: objective 'autoencoder' draws no samples: estimator must be pathwise, samples 1",
        ),
        ({"train__estimator": "doubly-reparameterised"}, "train: estimator 'doubly-reparameterised' is for objective "),
        (
            {"train__estimator": "sticking-the-landing", "train__objective": "iwae", "train__samples": 5},
            "train: estimator 'sticking-the-landing' is biased for objective iwae: use doubly-reparameterised",
        ),
        ({"train__estimator": "score-function-baseline"}, "samples must be at least 2, found 1"),
        ({"train__estimator": "score-function", "train__free_bits": 0.1}, "train: free_bits need a closed-form KL: "),
        ({"train__estimator": "reinforce"}, "train.estimator: must be 'pathwise', 'score-function', "),
        ({"train__samples": 0}, "train.samples: must be greater than or equal to 1; found 0"),
        (
            {"model__likelihood": {"kind": "bernoulli"}},
            "'bernoulli' but data.binarise is 'none': bernoulli needs binary pixels ",
        ),
        ({"data__binarise": "static"}, "is 'discretised-logistic' but data.binarise is 'static'"),
        (
            {"model__network": {"kind": "autoencoder-kl", "hidden": 9}},
            "model.network.hidden: unknown key; allowed: kind, block_out_channels, layers_per_block, latent_channels, ",
        ),
        (
            {"model__prior__kind": "gauss"},
            "model.prior.kind: allowed: 'standard-normal', 'vamp', 'mixture', 'fitted'; found ",
        ),
        (
            {"model__prior": {"kind": "standard-normal", "components": 9}},
            "model.prior.components: unknown key; allowed: kind ",
        ),
        ({"model__prior": {"kind": "vamp", "components": 0}}, "model.prior.components: must be greater than or equal"),
        (
            {"model__prior": {"kind": "vamp"}, "train__objective": "autoencoder"},
            "model.prior.kind is 'vamp' but train.objective is 'autoencoder', which has no prior",
        ),
        (
            {"model__prior": {"kind": "fitted", "during": {"kind": "vamp"}}, "train__free_bits": 0.5},
            "train.free_bits must be 0: under model.prior.kind 'vamp' the KL has no parts",
        ),
        (
            {"model__prior": {"kind": "fitted", "during": {"kind": "fitted"}}},
            "model.prior.during.kind: allowed: 'standard-normal', 'vamp', 'mixture'; found ",
        ),
        (
            {"model__prior": {"kind": "mixture"}, "train__free_bits": 0.5},
            "train.free_bits must be 0: under model.prior.kind 'mixture' the KL has no parts",
        ),
        (
            {"model__network": KL | {"block_out_channels": [32] * 4}},
            "model.network: height and width must be divisible by 8, found images of 28 x 28",
        ),
        (
            {"model__network": KL | {"latent_channels": 3}},
            "model.latent_dim: must be 147 = latent_channels x height x width / 4^2 for images of 28 x 28; found 20",
        ),
        (
            {
                "data__source": {"kind": "shapes", "size": 512},
                "model__network": {"kind": "mlp", "hidden": [65536] * 99},
            },
            "model: weights of 3,780 GB for images of 512 x 512; allowed: the ",
        ),
        ({"model__network": {"kind": "conv", "channels": [65536], "hidden": 65536}}, "model: weights of 6,735 GB for "),
        (
            {
                "data__source": {"kind": "shapes", "size": 512},
                "model__network": KL | {"block_out_channels": [2048] * 10, "layers_per_block": 16},
                "model__latent_dim": 4,
            },
            "model: weights of 100 GB",
        ),
        (
            {"data__source": {"kind": "shapes", "size": 512}} | {"model__prior": {"kind": "vamp", "components": 65536}},
            "model: weights of 209 GB",
        ),
        (
            {"train__only": "decoder", "train__init": {"kind": "diffusers", "path": "x"}, "model__network": KL}
            | {
                "model__likelihood": {"kind": "gaussian"},
                "model__latent_dim": 196,
                "model__prior": {"kind": "mixture"},
            },
            "train.only is 'decoder' but model.prior.kind is 'mixture', which belongs to the encoder",
        ),
        (
            {"data__source": {"kind": "folder", "path": "x", "size": 16}, "data__crop": {"kind": "centre", "size": 64}},
            "data.crop.size: found 64; allowed: at most 16 pixels here",
        ),
        (
            {"data__source": {"kind": "digits"}, "train__perceptual": {"kind": "vgg16", "weight": 1, "weights": "x"}},
            "train.perceptual: found images of 8 pixels a side; allowed: 16 on",
        ),
        (
            {"model__network": KL | {"block_out_channels": [32, 48, 64]}},
            "model: network.norm_num_groups (32) must divide 48 channels",
        ),
        (
            {"model__network": KL, "model__likelihood": {"kind": "continuous-bernoulli"}},
            "model: network 'autoencoder-kl' emits pixels on all reals; allowed: gaussian (not truncated), ",
        ),
        (
            {"train__init": {"kind": "diffusers", "path": "x"}},
            "train.init.kind is 'diffusers', an AutoencoderKL, but model.network.kind is 'mlp': allowed: ",
        ),
        ({"train__free_bits": 0.1, "train__accumulate": 2}, "train: free_bits need the KL of whole batches: "),
        ({"train__recompute": True}, "train.recompute is for network autoencoder-kl, found 'mlp'"),
        ({"train__only": "decoder"}, "train: only: decoder needs an encoder that is trained: init must be of kind "),
        ({"register__minimum_active_units": 21}, "exceeds model.latent_dim (20)"),
    ],
)
def test_a_mistake_is_one_line_naming_key_found_and_allowed(changes: dict[str, Any], line: str) -> None:
    error = _error(**changes)
    assert error.startswith("params.yaml: ")
    assert line in error
    assert "\n" not in error


def test_every_mistake_is_reported_at_once() -> None:
    assert len(_error(train__beta=-1, model__latent_dim=0).splitlines()) == 2


@pytest.mark.parametrize(
    ("objective", "estimator", "samples"),
    [
        ("elbo", "pathwise", 5),
        ("elbo", "score-function", 1),
        ("elbo", "score-function-baseline", 2),
        ("elbo", "sticking-the-landing", 1),
        ("iwae", "pathwise", 1),
        ("iwae", "pathwise", 50),
        ("iwae", "score-function-baseline", 5),
        ("iwae", "doubly-reparameterised", 50),
    ],
)
def test_bounds_and_estimators_that_fit_together_are_allowed(objective: str, estimator: str, samples: int) -> None:
    changed = _changed(train__objective=objective, train__estimator=estimator, train__samples=samples)
    assert parse_params(changed).train.samples == samples


def test_values_are_frozen_and_variants_and_what_may_be_left_out_are_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_params(PARAMS).train.epochs = 3  # type: ignore[misc]
    params = parse_params(
        _changed(train__beta=4, model__network={"kind": "conv", "hidden": 64, "channels": [8]}, model__prior=...)
    )
    assert (params.train.beta, params.model.network.kind, params.model.prior.kind) == (4.0, "conv", "standard-normal")
    params = parse_params(
        _changed(model__network={"kind": "gated", "hidden": [300]}, model__prior={"kind": "vamp", "components": 9})
    )
    assert (params.model.network.kind, params.model.prior.kind) == ("gated", "vamp")
    assert parse_params(_changed(model__likelihood={"kind": "gaussian"})).model.likelihood == Gaussian(kind="gaussian")
