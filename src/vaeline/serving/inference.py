"""Trained model for use: six methods on numpy arrays or torch tensors, few images in memory at once.

| method      | input                                    | output, float32                                        |
|-------------|------------------------------------------|--------------------------------------------------------|
| encode      | pixels [N, C, H, W], whole numbers 0-255 | posterior means [N, Z]                                 |
| decode      | latents [N, Z], finite numbers           | expected pixels on [0, 1], [N, C, H, W]                |
| reconstruct | pixels                                   | expected pixels at the posterior means                 |
| score       | pixels                                   | ELBO, nats per image, with one draw by `seed`: [N]     |
| sample      | how many, `n`                            | expected pixels of `n` prior draws by `seed`           |
| interpolate | pixels [2, C, H, W]                      | expected pixels of `steps` images between them          |

Pixels may have any dtype of numbers. Tensors are answered by tensors on their own device, all else by numpy arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core import sampling
from vaeline.core.batches import batch_ranges
from vaeline.core.estimators import per_image_noise, per_image_uniform
from vaeline.core.objectives import elbo_terms
from vaeline.serving.model_files import Description, LoadedModel

MOST_SAMPLES = 100_000

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass(frozen=True)
class TrainedModel:
    """VAE ready for use. Raises ValueError, in one line, for an input that it cannot read."""

    loaded: LoadedModel
    reference: npt.NDArray[np.float64] | None = None  # [N], ELBOs of test images, nats: see vaeline.evaluation.drift

    @property
    def digest(self) -> str:
        """SHA-256 over the model's two files."""
        return self.loaded.digest

    @property
    def config(self) -> Description:
        """Content of config.json: shape, networks, likelihood, data."""
        return self.loaded.config

    @property
    def device(self) -> torch.device:
        """Device of the computation."""
        return self.loaded.vae.device

    def encode(self, pixels: Values) -> Values:
        """Posterior means, the mean of q(z|x): [N, C, H, W] -> [N, Z]."""
        return self._over(pixels, self._pixels, lambda batch, _: self.loaded.vae.encode(self._observed(batch)).mean)

    def decode(self, latents: Values) -> Values:
        """Expected pixels of p(x|z) on [0, 1]: [N, Z] -> [N, C, H, W]."""
        return self._over(latents, self._latents, lambda z, _: sampling.decoded(self.loaded.vae, z))

    def reconstruct(self, pixels: Values) -> Values:
        """Expected pixels on [0, 1] at the posterior means: [N, C, H, W] -> [N, C, H, W]."""
        return self._over(
            pixels, self._pixels, lambda batch, _: sampling.reconstructions(self.loaded.vae, self._observed(batch))
        )

    def score(self, pixels: Values, seed: int = 0) -> Values:
        """The ELBO in nats per image, with one posterior sample: [N, C, H, W] -> [N].

        The noise is each image's own, by `seed` and its place in the input: batches change nothing.
        """
        _refuse_seed(seed)
        vae = self.loaded.vae
        if vae.deterministic:
            raise ValueError("method: 'score' needs an ELBO, which a plain autoencoder does not have")

        def elbo(batch: Tensor, places: range) -> Tensor:
            if not places:
                return torch.zeros(0)
            noise = per_image_uniform(seed, places, vae.shape).to(batch.device) if vae.likelihood.uses_noise else None
            draws = per_image_noise(seed, places, (vae.latent_dim,)).to(batch.device)
            return elbo_terms(vae, vae.likelihood.observe(batch, noise), draws).elbo

        return self._over(pixels, self._pixels, elbo)

    def sample(self, n: int = 16, seed: int = 0) -> np.ndarray:
        """Expected pixels on [0, 1] of `n` draws from the prior, chosen by `seed`: [n, C, H, W]."""
        _refuse_seed(seed)
        if not 1 <= n <= MOST_SAMPLES:
            raise ValueError(f"n: found {n}, allowed: 1 to {MOST_SAMPLES}")
        noise = per_image_noise(seed, range(n), (self.loaded.vae.latent_dim,)).numpy()
        return self._over(noise, self._latents, lambda draws, _: sampling.prior_samples(self.loaded.vae, draws))

    def interpolate(self, pixels: Values, steps: int = 10, spherical: bool = False) -> Values:
        """Expected pixels of `steps` images from pixels[0] to pixels[1], both included, along their posterior means.

        [2, C, H, W] -> [steps, C, H, W]. `spherical` keeps to the norms that latents have (White 2016).
        """
        if len(pixels) != 2 or not 2 <= steps <= 10_000:
            raise ValueError(f"interpolate: found {len(pixels)} images and {steps} steps, allowed: 2 and 2 to 10000")
        means = self.encode(pixels)
        path = sampling.slerp if spherical else torch.lerp
        start, end = torch.as_tensor(means)
        latents = torch.stack([path(start, end, fraction) for fraction in torch.linspace(0, 1, steps).to(start)])
        return self.decode(latents if isinstance(means, Tensor) else latents.numpy())

    def _over(
        self, given: Values, read: Callable[[Any], Tensor], function: Callable[[Tensor, range], Tensor]
    ) -> Values:
        """Apply a function to a few rows at once, so that memory stays bounded; the answer is of the input's kind."""
        rows = given if isinstance(given, Tensor) else _array(given)
        home = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
        parts = []
        with torch.no_grad():
            for places in batch_ranges(self.loaded.vae, len(rows)):
                parts.append(function(read(rows[places.start : places.stop]), places).to(home))
            if not parts:
                parts.append(function(read(rows), range(0)).to(home))
        answer = torch.cat(parts)
        return answer if isinstance(rows, Tensor) else answer.numpy()

    def _observed(self, pixels: Tensor) -> Tensor:
        return self.loaded.vae.likelihood.observe(pixels, None)

    def _pixels(self, given: np.ndarray | Tensor) -> Tensor:
        """Any numbers -> uint8 [N, C, H, W] on the model's device."""
        shape = self.loaded.vae.shape
        if tuple(given.shape[1:]) != shape:
            raise ValueError(f"pixels: found shape {list(given.shape)}, allowed: [N, {', '.join(map(str, shape))}]")
        values = self._numbers(given)
        if not ((values >= 0) & (values <= 255) & (values == values.floor())).all():  # NaN is none of these
            raise ValueError("pixels: found other values than whole numbers from 0 to 255")
        if self.loaded.vae.likelihood.measure == "binary" and not ((values == 0) | (values == 255)).all():
            raise ValueError("pixels: this model takes binary images: found other values than 0 and 255")
        return values.to(torch.uint8)

    def _latents(self, given: np.ndarray | Tensor) -> Tensor:
        """Any numbers -> float32 [N, Z] on the model's device."""
        latent_dim = self.loaded.vae.latent_dim
        if given.ndim != 2 or given.shape[1] != latent_dim:
            raise ValueError(f"latents: found shape {list(given.shape)}, allowed: [N, {latent_dim}]")
        z = self._numbers(given).float()
        if not torch.isfinite(z).all():
            raise ValueError("latents: found values that are not finite")
        return z

    def _numbers(self, given: np.ndarray | Tensor) -> Tensor:
        """A few rows as a tensor on the model's device: uint8 stays, other dtypes become float64."""
        if isinstance(given, Tensor):
            if given.is_complex() or given.is_quantized:
                raise ValueError(f"input: found {given.dtype}, allowed: real numbers")
            return given.detach().to(self.device, torch.uint8 if given.dtype == torch.uint8 else torch.float64)
        rows = np.array(given, np.uint8 if given.dtype == np.uint8 else np.float64)  # a copy: it may be read-only
        return torch.from_numpy(rows).to(self.device)


def _array(given: Any) -> np.ndarray:
    """An array of real numbers; JSON requests arrive as lists or with dtype object."""
    try:
        values = np.asarray(given)
        values = values.astype(np.float64) if values.dtype == object else values
    except (TypeError, ValueError):
        raise ValueError("input: found something else than an array of numbers") from None
    if values.dtype.kind not in "buif" or values.ndim == 0:
        raise ValueError("input: found something else than an array of numbers")
    return values


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: found {seed}, allowed: 0 to 2^63 - 1")
