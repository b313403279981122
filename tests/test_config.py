from pathlib import Path
from typing import Any

import pytest

from data_files import refusal
from vaeline.config import Gaussian, Params, parse_params, read_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import parse_yaml, read_yaml

PARAMS = Path(__file__).parents[1] / "params.yaml"
KL = "model.network={kind: autoencoder-kl}"
LARGE = "data.source={kind: shapes, size: 512}"
NO_KL = "has no KL: beta must be 1, warmup_epochs and free_bits 0"
# changes of params.yaml, as -S takes them but in YAML, and a part of the one line that they bring about
MISTAKES = [
    ("train.bata=1", "train.bata: unknown key; did you mean 'beta'? allowed: objective, estimator, "),
    ("trian={}", "trian: unknown key; did you mean 'train'? allowed: data, model, train, "),
    ("data.source.path=x", "data.source.path: unknown key; allowed: kind (to remove it: "),
    ("train.beta", "train.beta: missing"),
    ("register", "register: missing"),
    ("train.beta=x", "train.beta: must be a valid number; found 'x'"),
    ("train.beta=.nan", "train.beta: must be a finite number; found nan"),
    ("train.beta=.inf", "train.beta: must be a finite number; found inf"),
    ("train.beta=-1", "train.beta: must be greater than or equal to 0; found -1"),
    ("train.epochs=2.0", "train.epochs: must be a valid integer; found 2.0"),
    ("train.epochs=true", "train.epochs: must be a valid integer; found True"),
    ("train=~", "train: must be a section with keys; found None"),
    ("data.source=mnist", "data.source: must be a section with keys; found 'mnist'"),
    ("data.source={}", "data.source: must have a kind; found {}"),
    ("data.source={kind: npz, path: ''}", "data.source.path: must have at least 1 character; found ''"),
    ("data.source.kind=mnits", "data.source.kind: allowed: 'fashion-mnist', 'mnist', 'kmnist', "),
    ("data.validation=1.5", "data.validation: must be a valid integer, or less than 1; found 1.5"),
    ("data.test=own", "data.test: must be 'auto', or a valid integer, or a valid number; found 'own'"),
    (
        "model.likelihood={kind: gaussian, sigma: -1}",
        "model.likelihood.sigma: must be 'learned', or greater than 0; found -1",
    ),
    ("model.network.hidden=[]", "model.network.hidden: must have at least 1 item "),
    ("model.network.hidden=[9, a]", "model.network.hidden.1: must be a valid integer; found 'a'"),
    ("register.name=a/b", "register.name: "),
    ("train.warmup_epochs=50", "train: warmup_epochs (50) must not exceed epochs (14)"),
    ("train.objective=autoencoder & train.beta=2", f"train: objective 'autoencoder' {NO_KL}"),
    ("train.objective=iwae & train.beta=2", f"train: objective 'iwae' {NO_KL}"),
    ("train.objective=iwae & train.free_bits=0.1", f"train: objective 'iwae' {NO_KL}"),
    ("train.objective=iwae & train.warmup_epochs=2", f"train: objective 'iwae' {NO_KL}"),
    ("train.objective=autoencoder & train.samples=2", "draws no samples: estimator must be pathwise, samples 1"),
    (
        "train.objective=autoencoder & train.estimator=sticking-the-landing",
        "train: objective 'autoencoder' draws no samples: estimator must be pathwise, samples 1",
    ),
    ("train.estimator=doubly-reparameterised", "train: estimator 'doubly-reparameterised' is for objective "),
    (
        "train.estimator=sticking-the-landing & train.objective=iwae & train.samples=5",
        "train: estimator 'sticking-the-landing' is biased for objective iwae: use doubly-reparameterised",
    ),
    ("train.estimator=score-function-baseline", "samples must be at least 2, found 1"),
    ("train.estimator=score-function & train.free_bits=0.1", "train: free_bits need a closed-form KL: "),
    ("train.estimator=reinforce", "train.estimator: must be 'pathwise', 'score-function', "),
    ("train.samples=0", "train.samples: must be greater than or equal to 1; found 0"),
    ("model.likelihood={kind: bernoulli}", "'bernoulli' but data.binarise is 'none': bernoulli needs binary pixels "),
    ("data.binarise=static", "is 'discretised-logistic' but data.binarise is 'static'"),
    (
        "model.network={kind: autoencoder-kl, hidden: 9}",
        "model.network.hidden: unknown key; allowed: kind, block_out_channels, layers_per_block, latent_channels, ",
    ),
    ("model.prior.kind=gauss", "model.prior.kind: allowed: 'standard-normal', 'vamp', 'mixture', 'fitted'; found "),
    ("model.prior={kind: standard-normal, components: 9}", "model.prior.components: unknown key; allowed: kind "),
    ("model.prior={kind: vamp, components: 0}", "model.prior.components: must be greater than or equal"),
    (
        "model.prior={kind: vamp} & train.objective=autoencoder",
        "model.prior.kind is 'vamp' but train.objective is 'autoencoder', which has no prior",
    ),
    (
        "model.prior={kind: fitted, during: {kind: vamp}} & train.free_bits=0.5",
        "train.free_bits must be 0: under model.prior.kind 'vamp' the KL has no parts",
    ),
    (
        "model.prior={kind: fitted, during: {kind: fitted}}",
        "model.prior.during.kind: allowed: 'standard-normal', 'vamp', 'mixture'; found ",
    ),
    (
        "model.prior={kind: mixture} & train.free_bits=0.5",
        "train.free_bits must be 0: under model.prior.kind 'mixture' the KL has no parts",
    ),
    (
        f"{KL} & model.network.block_out_channels=[32, 32, 32, 32]",
        "model.network: height and width must be divisible by 8, found images of 28 x 28",
    ),
    (
        f"{KL} & model.network.latent_channels=3",
        "model.latent_dim: must be 147 = latent_channels x height x width / 4^2 for images of 28 x 28; found 20",
    ),
    (
        f"{LARGE} & model.network={{kind: mlp, hidden: [{'65536,' * 99}]}}",
        "model: weights of 3,780 GB for images of 512 x 512; allowed: the ",
    ),
    ("model.network={kind: conv, channels: [65536], hidden: 65536}", "model: weights of 6,735 GB for "),
    ("model.network={kind: conv, channels: [65536, 65536], hidden: 1}", "model: weights of 430 GB for "),
    (
        f"{LARGE} & {KL} & model.network.block_out_channels=[{'2048,' * 10}] & model.network.layers_per_block=16 & "
        "model.latent_dim=4",
        "model: weights of 100 GB",
    ),
    (f"{LARGE} & model.prior={{kind: vamp, components: 65536}}", "model: weights of 209 GB"),
    (
        f"{KL} & train.only=decoder & train.init={{kind: diffusers, path: x}} & model.likelihood={{kind: gaussian}} & "
        "model.latent_dim=196 & model.prior={kind: mixture}",
        "train.only is 'decoder' but model.prior.kind is 'mixture', which belongs to the encoder",
    ),
    (
        "data.source={kind: folder, path: x, size: 16} & data.crop={kind: centre, size: 64}",
        "data.crop.size: found 64; allowed: at most 16 pixels here",
    ),
    (
        "data.source={kind: digits} & train.perceptual={kind: vgg16, weight: 1, weights: x}",
        "train.perceptual: found images of 8 pixels a side; allowed: 16 on",
    ),
    (
        f"{KL} & model.network.block_out_channels=[32, 48, 64]",
        "model: network.norm_num_groups (32) must divide 48 channels",
    ),
    (
        f"{KL} & model.likelihood={{kind: continuous-bernoulli}}",
        "model: network 'autoencoder-kl' emits pixels on all reals; allowed: gaussian (not truncated), ",
    ),
    (
        "train.init={kind: diffusers, path: x}",
        "train.init.kind is 'diffusers', an AutoencoderKL, but model.network.kind is 'mlp': allowed: ",
    ),
    ("train.free_bits=0.1 & train.accumulate=2", "train: free_bits need the KL of whole batches: "),
    ("train.recompute=true", "train.recompute is for network autoencoder-kl, found 'mlp'"),
    ("train.only=decoder", "train: only: decoder needs an encoder that is trained: init must be of kind "),
    ("register.minimum_active_units=21", "exceeds model.latent_dim (20)"),
]


def changed(changes: str) -> dict[str, Any]:
    """The content of params.yaml after changes such as "train.beta=4 & register", of which the last removes a key."""
    content: dict[str, Any] = read_yaml(PARAMS)
    for change in changes.split(" & "):
        path, equals, value = change.partition("=")
        *parents, key = path.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section.pop(key, None)
        section |= {key: parse_yaml(value, "change")} if equals else {}
    return content


@pytest.mark.parametrize(("changes", "line"), MISTAKES)
def test_a_mistake_is_one_line_naming_key_found_and_allowed(changes: str, line: str) -> None:
    error = refusal(parse_params, changed(changes))
    assert error.startswith("params.yaml: ")
    assert line in error


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(UserError, match=r"^params.yaml: .*\nparams.yaml: [^\n]*$"):
        parse_params(changed("train.beta=-1 & model.latent_dim=0"))


@pytest.mark.parametrize(
    ("objective", "estimator", "samples"),
    [("elbo", "pathwise", 5), ("elbo", "score-function", 1), ("elbo", "score-function-baseline", 2),
     ("elbo", "sticking-the-landing", 1), ("iwae", "pathwise", 1), ("iwae", "pathwise", 50),
     ("iwae", "score-function-baseline", 5), ("iwae", "doubly-reparameterised", 50)],
)  # fmt: skip
def test_bounds_and_estimators_that_fit_together_are_allowed(objective: str, estimator: str, samples: int) -> None:
    values = f"train.objective={objective} & train.estimator={estimator} & train.samples={samples}"
    assert parse_params(changed(values)).train.samples == samples


def test_values_are_frozen_and_variants_and_what_may_be_left_out_are_read() -> None:
    def parsed(changes: str) -> Params:
        return parse_params(changed(changes))

    with pytest.raises(ValueError, match="frozen"):
        read_params(PARAMS).train.epochs = 3  # type: ignore[misc]
    params = parsed("train.beta=4 & model.network={kind: conv, hidden: 64, channels: [8]} & model.prior")
    assert (params.train.beta, params.model.network.kind, params.model.prior.kind) == (4.0, "conv", "standard-normal")
    model = parsed("model.network={kind: gated, hidden: [300]} & model.prior={kind: vamp, components: 9}").model
    assert (model.network.kind, model.prior.kind) == ("gated", "vamp")
    assert parsed("model.likelihood={kind: gaussian}").model.likelihood == Gaussian(kind="gaussian")
