"""Encoder and decoder of diffusers' AutoencoderKL, Stable Diffusion's first stage (Rombach et al. 2022).

Of n channel counts: an image [C, H, W] has the latents [c, H / f, W / f] with f = 2^(n - 1). The VAE sees them
flattened, Z = c H W / f^2, channels slowest. AutoencoderKL itself reads pixels u8 as u8 / 127.5 - 1
and emits y, the picture (y + 1) / 2 on [0, 1]: so do these, whatever data space the likelihood has.
"""
# ruff: noqa: D102 - a module's docstring documents its forward

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vaeline.core.networks import Shape, at_least_float32
from vaeline.errors import optional_imports


class Affine(nn.Module):
    """slope x + shift, in float32 also under autocast."""

    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(x) * self.slope + self.shift


class First(nn.Module):
    """The first columns of a matrix, [B, N] -> [B, count]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]


DEFAULTS = {"use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}  # not always written


@dataclass(frozen=True)
class Sizes:
    """AutoencoderKL's arguments, under its names, that are free here."""

    block_out_channels: Sequence[int]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    mid_block_add_attention: bool

    def latents(self, shape: Shape) -> Shape:
        """c, H / f, W / f of images whose H and W the factor f divides."""
        factor, (_, height, width) = 2 ** (len(self.block_out_channels) - 1), shape
        return self.latent_channels, height // factor, width // factor

    def arguments(self, shape: Shape) -> dict[str, Any]:
        """All of AutoencoderKL's arguments for images of this shape."""
        levels = len(self.block_out_channels)
        return {
            "in_channels": shape[0],
            "out_channels": shape[0],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_num_groups,
            "mid_block_add_attention": self.mid_block_add_attention,
            "act_fn": "silu",
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        }


def clamped_log_variance(raw: Tensor) -> Tensor:
    """AutoencoderKL's log variance: clamped to [-30, 20]."""
    return raw.clamp(-30.0, 20.0)


def kl_networks(shape: Shape, sizes: Sizes, *, discrete: bool, mean_only: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder [B, C, H, W] -> [B, 2 Z], or [B, Z] with the mean only, and decoder [B, Z] -> [B, C, H, W].

    x is u8 / 255 of a `discrete` likelihood and (u8 + 1/2) / 256 of another. Attention is plain matrix products:
    deterministic on every device. Raises UserError where diffusers is not installed.
    """
    with optional_imports("diffusion"):
        from diffusers import AutoencoderKL
    whole = AutoencoderKL(**sizes.arguments(shape))
    whole.set_default_attn_processor()
    latents = sizes.latents(shape)
    scale = Affine(2.0, -1.0) if discrete else Affine(256 / 127.5, -0.5 / 127.5 - 1)
    encoder = OrderedDict[str, nn.Module](scale=scale, network=whole.encoder, quant_conv=whole.quant_conv)
    encoder["flatten"] = nn.Flatten()
    if mean_only:
        encoder["mean"] = First(torch.Size(latents).numel())
    decoder = OrderedDict[str, nn.Module](unflatten=nn.Unflatten(1, latents), post_quant_conv=whole.post_quant_conv)
    decoder |= OrderedDict(network=whole.decoder, scale=Affine(0.5, 0.5))
    return nn.Sequential(encoder), nn.Sequential(decoder)


def recompute_activations(vae: nn.Module) -> None:
    """Keep the inputs of blocks alone in the forward pass, and compute them again in the backward pass."""
    for module in vae.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]
            # nothing in a block is random
            again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            module._gradient_checkpointing_func = again  # type: ignore[assignment]


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights by AutoencoderKL's names; likelihood and prior, which it lacks, are left out."""
    parts = {name: tensor for name, tensor in state.items() if name.startswith(("encoder.", "decoder."))}
    return {diffusers_name(name): tensor for name, tensor in parts.items()}


def diffusers_name(name: str) -> str:
    """encoder.network.X -> encoder.X, encoder.quant_conv.X -> quant_conv.X, and the same of the decoder."""
    part, _, rest = name.partition(".")
    return f"{part}.{rest.removeprefix('network.')}" if rest.startswith("network.") else rest
