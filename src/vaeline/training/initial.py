"""Weights that a training starts from: an AutoencoderKL as diffusers saves it. Safetensors alone, nothing unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vaeline import config
from vaeline.config.data import Shape
from vaeline.config.train import INIT_CONFIG, INIT_WEIGHTS, PERCEPTUAL_SIDE, Perceptual
from vaeline.core import perceptual as network
from vaeline.core.autoencoder_kl import DEFAULTS, to_diffusers
from vaeline.core.model import VAE
from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json, read_bounded, shown
from vaeline.training.build import kl_sizes

CONFIG_BYTES, HEADER_BYTES = 16 << 10, 1 << 20  # the most there may be; 700 and 2000 are usual
VGG_BYTES = 1 << 30  # the whole state_dict has 553 MB
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names in files of before 2023


def load_initial(vae: VAE, section: config.AutoencoderKl, folder: Path) -> None:
    """Copy into a VAE the encoder and the decoder of the AutoencoderKL in a folder; half precision becomes float32.

    Raises UserError, naming the file, where it is none, of other sizes than `section`, or lacks or has other tensors.
    """
    path = folder / INIT_CONFIG
    found = parse_json(read_bounded(path, CONFIG_BYTES), str(path))
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != "AutoencoderKL":
        raise UserError(f"{path}: _class_name: found {shown(kind)}, allowed: AutoencoderKL")
    for name, wanted in kl_sizes(section).arguments(vae.shape).items():
        if (value := found.get(name, DEFAULTS.get(name))) != wanted:
            raise UserError(f"{path}: {name}: found {shown(value)}, model.network and the images want {wanted}")
    own, path = to_diffusers(vae.state_dict()), folder / INIT_WEIGHTS
    content = read_bounded(path, HEADER_BYTES + 4 * sum(tensor.numel() for tensor in own.values()))
    tensors = {_current(name): tensor for name, tensor in parse_tensors(content, path).items()}
    half = (torch.float16, torch.bfloat16)
    tensors = {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}
    check_tensors(tensors, own, path, INIT_CONFIG)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_perceptual(options: Perceptual, shape: Shape) -> network.Perceptual:
    """The frozen network of these options for images of this shape. Raises UserError where its file does not fit."""
    path = Path(options.weights)
    if min(shape[1:]) < PERCEPTUAL_SIDE or shape[0] not in (1, 3):
        side = f"images of 1 or 3 channels and at least {PERCEPTUAL_SIDE} pixels a side"
        raise UserError(f"train.perceptual: found {' x '.join(map(str, shape))}; allowed: {side}")
    found, tensors = network.Perceptual(options.weight), parse_tensors(read_bounded(path, VGG_BYTES), path)
    own = {f"features.{name}": tensor for name, tensor in found.features.state_dict().items()}
    lins = {f"lin{k}.model.1.weight": lin.view(1, -1, 1, 1) for k, lin in enumerate(found.lins)}
    expected = own | (lins if lins.keys() & tensors.keys() else {})
    used = {name: tensors[name] for name in expected if name in tensors}  # torchvision's file has a classifier too
    check_tensors(used, expected, path, options.kind)
    found.load(used)
    return found


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
