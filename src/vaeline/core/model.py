"""The VAE: an encoder, a decoder, a likelihood and a prior; pictures of it. No loss here: see objectives.py."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaeline.core.distributions import LOG_VARIANCE_BOUND, DiagonalGaussian, bounded_log_variance
from vaeline.core.likelihoods import Likelihood
from vaeline.core.networks import Shape, at_least_float32
from vaeline.core.priors import Prior, StandardNormal, VampPrior


class VAE(nn.Module):
    """p(x, z) = p(x|z) p(z) and q(z|x) (Kingma & Welling 2014, arXiv:1312.6114).

    `encoder` maps [B, C, H, W] to [B, 2 Z], the mean and the raw log variance of q(z|x); `decoder` maps [N, Z] to
    [N, C, H, W], the likelihood's output. A `deterministic` one, a plain autoencoder, has an encoder that emits the
    mean alone, [B, Z]: q(z|x) is then as narrow as a log variance may be, exp(-20). `bounded` makes the log variance of
    the raw one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior,
        *,
        shape: Shape,
        latent_dim: int,
        deterministic: bool = False,
        bounded: Callable[[Tensor], Tensor] = bounded_log_variance,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.bounded = encoder, decoder, bounded
        self.likelihood, self.prior = likelihood, prior
        self.shape, self.latent_dim, self.deterministic = shape, latent_dim, deterministic
        if isinstance(prior, VampPrior):
            prior.bind(self.encode)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def has_prior(self) -> bool:
        """Whether its codes follow p(z): not those of an autoencoder, unless a prior was fitted to them."""
        return not self.deterministic or not isinstance(self.prior, StandardNormal)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x) for x in the likelihood's data space, [B, C, H, W]; float32 also under autocast."""
        raw = at_least_float32(self.encoder(x))
        if self.deterministic:
            return DiagonalGaussian(raw, torch.full_like(raw, -LOG_VARIANCE_BOUND))
        mean, raw_log_variance = raw.chunk(2, dim=1)
        return DiagonalGaussian(mean, self.bounded(raw_log_variance))

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's output for z [N, Z]: [N, C, H, W]; float32 also under autocast."""
        return at_least_float32(self.decoder(z))


def decoded(model: VAE, z: Tensor) -> Tensor:
    """Expected pixels p(x|z) for z [N, Z]."""
    return model.likelihood.mean(model.decode(z))


@torch.no_grad()
def interpolate(model: VAE, x: Tensor, steps: int) -> Tensor:
    """`steps` images from x[0] to x[1], both ends included, along their posterior means: x [2, C, H, W]."""
    start, end = model.encode(x).mean
    fractions = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return decoded(model, torch.stack([torch.lerp(start, end, fraction) for fraction in fractions]))


@torch.no_grad()
def sample_sheet(model: VAE, noise: Tensor) -> NDArray[np.uint8]:
    """A square grid of prior samples from noise [N^2, Z]: uint8, [N H, N W], or [N H, N W, 3] for colour images."""
    images, side = decoded(model, model.prior.sample(noise)), math.isqrt(len(noise))
    colours, height, width = model.shape
    grid = images.view(side, side, colours, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(side * height, side * width, colours).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.cpu().numpy()
    return array if colours == 3 else array[..., 0]
