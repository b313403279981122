"""A residual convolutional autoencoder with spatial latents: the shape of Stable Diffusion's first stage.

Encoder and decoder of Rombach et al. 2022 (arXiv:2112.10752, appendix E), without attention: n channel counts halve
the resolution n - 1 times, so an image [C, H, W] has the latents [c, H / f, W / f] with f = 2^(n - 1). The VAE sees
them flattened, Z = c H W / f^2, channels slowest.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vaeline.core.networks import Centre, Shape

GROUPS = 32  # of a group norm, or as many as divide the channels


class ResidualBlock(nn.Module):
    """x + two convolutions, each after group norm and SiLU (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.change = nn.Sequential(*_norm(before), _conv(before, after), *_norm(after), _conv(after, after))
        self.keep = nn.Identity() if before == after else nn.Conv2d(before, after, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H, W]."""
        changed: Tensor = self.keep(x) + self.change(x)
        return changed


def factor(channels: Sequence[int]) -> int:
    """f: how many pixels, along an edge, share a latent."""
    return 1 << (len(channels) - 1)


def latent_shape(shape: Shape, channels: Sequence[int], latent_channels: int) -> Shape:
    """The latents' c, H / f, W / f. Raises ValueError where f does not divide H and W."""
    _, height, width = shape
    f = factor(channels)
    if height % f or width % f:
        raise ValueError(f"height and width must be divisible by {f}, found {height} x {width}")
    return latent_channels, height // f, width // f


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
