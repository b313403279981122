"""Dense and convolutional encoders [B, C, H, W] -> [B, outputs] and decoders [B, Z] -> [B, C, H, W], of any size."""
# ruff: noqa: D102 - a module's docstring documents its forward

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]  # C, H, W

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
GATED = "gated"  # h = (W x + b) * sigmoid(V x + c): dense layers as in Tomczak & Welling 2018, arXiv:1705.07120


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
