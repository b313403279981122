"""Weights that a training starts from: an AutoencoderKL as diffusers saves it. Safetensors alone, nothing unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vaeline import config
from vaeline.config_train import INIT_CONFIG, INIT_WEIGHTS
from vaeline.core.autoencoder_kl import DEFAULTS, diffusers_name
from vaeline.core.model import VAE
from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json, read_bounded, shown
from vaeline.training.build import kl_sizes

CONFIG_BYTES, HEADER_BYTES = 16 << 10, 1 << 20  # the most there may be; 700 and 2000 are usual
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names in files of before 2023


def load_initial(vae: VAE, network: config.AutoencoderKl, folder: Path) -> None:
    """Copy into a VAE the encoder and the decoder of the AutoencoderKL in a folder; half precision becomes float32.

    Raises UserError, naming the file, where it is none, of other sizes than `network`, or lacks or has other tensors.
    """
    path = folder / INIT_CONFIG
    found = parse_json(read_bounded(path, CONFIG_BYTES), str(path))
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != "AutoencoderKL":
        raise UserError(f"{path}: _class_name: found {shown(kind)}, allowed: AutoencoderKL")
    for name, wanted in kl_sizes(network).arguments(vae.shape).items():
        if (value := found.get(name, DEFAULTS.get(name))) != wanted:
            raise UserError(f"{path}: {name}: found {shown(value)}, model.network and the images want {wanted}")
    state = vae.state_dict()
    names = {diffusers_name(name): name for name in state if name.startswith(("encoder.", "decoder."))}
    path = folder / INIT_WEIGHTS
    content = read_bounded(path, HEADER_BYTES + 4 * sum(state[name].numel() for name in names.values()))
    tensors = {_current(name): tensor for name, tensor in parse_tensors(content, path).items()}
    half = (torch.float16, torch.bfloat16)
    tensors = {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}
    check_tensors(tensors, {name: state[own] for name, own in names.items()}, path, INIT_CONFIG)
    with torch.no_grad():
        for name, own in names.items():
            state[own].copy_(tensors[name])


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of this content. Raises UserError, naming the path."""
    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise UserError(f"{path}: is not a safetensors file: {shown(error)}") from None
    parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], str(path))  # stricter: no tensor twice
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, source: str) -> None:
    """Raise UserError where tensors are not those that `source` describes, finite, of the same shapes and dtypes."""
    if tensors.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        raise UserError(f"{path}: does not fit {source}: missing tensors {shown(missing)}, unknown {shown(extra)}")
    for name, tensor in tensors.items():
        found, wanted = (f"{each.dtype} {list(each.shape)}" for each in (tensor, expected[name]))
        if found != wanted:
            raise UserError(f"{path}: tensor {name}: found {found}, {source} wants {wanted}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name}: holds values that are not finite")


def _current(name: str) -> str:
    """The present name of a tensor of the attention."""
    before, _, last = name.rpartition(".")
    layer = before.rpartition(".")[2]
    return f"{before.removesuffix(layer)}{FORMER[layer]}.{last}" if layer in FORMER else name
