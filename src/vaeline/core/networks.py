"""Encoders [B, C, H, W] -> [B, outputs] and decoders [B, Z] -> [B, C, H, W].

Dense and convolutional ones take images of any size. The residual ones have spatial latents, the shape of Stable
Diffusion's first stage (Rombach et al. 2022, arXiv:2112.10752, appendix E, without attention): n channel counts halve
the resolution n - 1 times, so an image [C, H, W] has the latents [c, H / f, W / f] with f = 2^(n - 1). The VAE sees
them flattened, Z = c H W / f^2, channels slowest.
"""
# ruff: noqa: D102 - a module's docstring documents its forward

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]  # C, H, W

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
GATED = "gated"  # h = (W x + b) * sigmoid(V x + c): dense layers as in Tomczak & Welling 2018, arXiv:1705.07120
GROUPS = 32  # of a group norm, or as many as divide the channels


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32 if they are in half precision, as under autocast."""
    return values if values.dtype == torch.float64 else values.float()


class Centre(nn.Module):
    """Pixels on [0, 1] to [-1/2, 1/2]."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


class Crop(nn.Module):
    """Images cut to a height and a width from the top left: [B, C, H', W'] -> [B, C, height, width]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


class UnitInterval(nn.Module):
    """Reals to pixels on (0, 1), by the logistic function, in float32 also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(x))


def mlp_encoder(shape: Shape, hidden: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    """Flatten, then dense layers of the `hidden` widths, then one linear layer with all `outputs`."""
    widths = [math.prod(shape), *hidden]
    return nn.Sequential(Centre(), nn.Flatten(), *_dense(widths, activation), nn.Linear(widths[-1], outputs))


def mlp_decoder(shape: Shape, hidden: Sequence[int], latent_dim: int, activation: str) -> nn.Sequential:
    """The encoder mirrored: `hidden` is given in the encoder's order."""
    widths, pixels = [latent_dim, *reversed(hidden)], math.prod(shape)
    return nn.Sequential(*_dense(widths, activation), nn.Linear(widths[-1], pixels), nn.Unflatten(1, shape))


def conv_encoder(shape: Shape, channels: Sequence[int], hidden: int, outputs: int, activation: str) -> nn.Sequential:
    """One strided convolution a channel count, each halving the resolution (rounded up), then a dense layer."""
    layers: list[nn.Module] = [Centre()]
    for before, after in pairwise([shape[0], *channels]):
        layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), ACTIVATIONS[activation]()]
    flat = channels[-1] * math.prod(_sizes(shape, len(channels))[-1])
    return nn.Sequential(*layers, nn.Flatten(), *_dense([flat, hidden], activation), nn.Linear(hidden, outputs))


def conv_decoder(shape: Shape, channels: Sequence[int], hidden: int, latent_dim: int, activation: str) -> nn.Sequential:
    """The encoder mirrored: transposed convolutions double the resolution, odd sizes are cropped."""
    *sizes, smallest = _sizes(shape, len(channels))
    layers = _dense([latent_dim, hidden, channels[-1] * math.prod(smallest)], activation)
    layers.append(nn.Unflatten(1, (channels[-1], *smallest)))
    for (before, after), size in zip(pairwise([*reversed(channels), shape[0]]), reversed(sizes), strict=True):
        layers += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), Crop(*size)]
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers[:-1])


def _dense(widths: Sequence[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        if activation == GATED:
            layers += [nn.Linear(before, 2 * after), nn.GLU(dim=1)]
        else:
            layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return layers


def _sizes(shape: Shape, halvings: int) -> list[tuple[int, int]]:
    """Height and width before and after each halving, which rounds up: [halvings + 1]."""
    return [(-(-shape[1] // 2**i), -(-shape[2] // 2**i)) for i in range(halvings + 1)]


class ResidualBlock(nn.Module):
    """x + two convolutions, each after group norm and SiLU (He et al. 2016): [B, before, H, W] -> [B, after, H, W]."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.change = nn.Sequential(*_norm(before), _conv(before, after), *_norm(after), _conv(after, after))
        self.keep = nn.Identity() if before == after else nn.Conv2d(before, after, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.keep(x), self.change(x))


def latent_shape(shape: Shape, channels: Sequence[int], latent_channels: int) -> Shape:
    """The latents' c, H / f, W / f. Raises ValueError where f does not divide H and W."""
    factor, (_, height, width) = 2 ** (len(channels) - 1), shape
    if height % factor or width % factor:
        raise ValueError(f"height and width must be divisible by {factor}, found {height} x {width}")
    return latent_channels, height // factor, width // factor


def residual_encoder(shape: Shape, channels: Sequence[int], blocks: int, outputs: int) -> nn.Sequential:
    """Images [B, C, H, W] to `outputs` numbers at each latent place, flattened: [B, outputs H W / f^2]."""
    layers: list[nn.Module] = [Centre(), _conv(shape[0], channels[0])]
    for level, (before, after) in enumerate(pairwise([channels[0], *channels])):
        if level:
            layers.append(_conv(before, before, stride=2))
        layers += _blocks(before, after, blocks)
    return nn.Sequential(*layers, *_norm(channels[-1]), _conv(channels[-1], outputs), nn.Flatten())


def residual_decoder(shape: Shape, channels: Sequence[int], blocks: int, latent_channels: int) -> nn.Sequential:
    """The encoder mirrored; the nearest pixel is repeated where the encoder has a stride."""
    layers: list[nn.Module] = [nn.Unflatten(1, latent_shape(shape, channels, latent_channels))]
    layers.append(_conv(latent_channels, channels[-1]))
    for level, (before, after) in enumerate(pairwise([channels[-1], *reversed(channels)])):
        if level:
            layers += [nn.Upsample(scale_factor=2.0, mode="nearest"), _conv(before, before)]
        layers += _blocks(before, after, blocks)
    return nn.Sequential(*layers, *_norm(channels[0]), _conv(channels[0], shape[0]))


def _blocks(before: int, after: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(*widths) for widths in pairwise([before] + [after] * count)]


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(math.gcd(channels, GROUPS), channels), nn.SiLU()


def _conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1)
