"""Trained model for use: numpy arrays or torch tensors in, float32 of the same kind out, few images at once in memory.

Pixels are whole numbers 0-255 of any dtype. Tensors are answered by tensors on their own device, all else by arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaeline.core.estimators import batch_ranges, observe, per_image_noise
from vaeline.core.model import decoded
from vaeline.core.objectives import elbo_terms
from vaeline.serving.model_files import LoadedModel

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

    def encode(self, pixels: Values) -> Values:
        """Posterior means, the mean of q(z|x): [N, C, H, W] -> [N, Z]."""
        return self._batched(pixels, self._pixels, lambda u8, _: self._means(u8))

    def decode(self, latents: Values) -> Values:
        """Expected pixels of p(x|z) on [0, 1]: [N, Z] -> [N, C, H, W]."""
        return self._batched(latents, self._latents, lambda z, _: decoded(self.loaded.vae, z))

    def reconstruct(self, pixels: Values) -> Values:
        """Expected pixels on [0, 1] at the posterior means: [N, C, H, W] -> [N, C, H, W]."""
        return self._batched(pixels, self._pixels, lambda u8, _: decoded(self.loaded.vae, self._means(u8)))

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
            draws = per_image_noise(seed, places, (vae.latent_dim,)).to(batch.device)
            return elbo_terms(vae, observe(vae, batch, places, seed), draws).elbo

        return self._batched(pixels, self._pixels, elbo)

    def sample(self, n: int = 16, seed: int = 0) -> np.ndarray:
        """Expected pixels on [0, 1] of `n` draws from the prior, chosen by `seed`: [n, C, H, W]."""
        _refuse_seed(seed)
        if not 1 <= n <= MOST_SAMPLES:
            raise ValueError(f"n: found {n}, allowed: 1 to {MOST_SAMPLES}")
        vae = self.loaded.vae
        noise = per_image_noise(seed, range(n), (vae.latent_dim,)).numpy()
        return self._batched(noise, self._latents, lambda z, _: decoded(vae, vae.prior.sample(z)))

    def interpolate(self, pixels: Values, steps: int = 10) -> Values:
        """Expected pixels of `steps` images from pixels[0] to pixels[1], both included, along their posterior means.

        [2, C, H, W] -> [steps, C, H, W].
        """
        if len(pixels) != 2 or not 2 <= steps <= 10_000:
            raise ValueError(f"interpolate: found {len(pixels)} images and {steps} steps, allowed: 2 and 2 to 10000")
        means = self.encode(pixels)
        start, end = torch.as_tensor(means)
        latents = torch.stack([torch.lerp(start, end, fraction) for fraction in torch.linspace(0, 1, steps).to(start)])
        return self.decode(latents if isinstance(means, Tensor) else latents.numpy())

    def _means(self, u8: Tensor) -> Tensor:
        return self.loaded.vae.encode(self.loaded.vae.likelihood.observe(u8, None)).mean

    def _batched(
        self, given: Values, read: Callable[[Tensor], Tensor], function: Callable[[Tensor, range], Tensor]
    ) -> Values:
        """Apply a function to a few rows at once, so that memory stays bounded; the answer is of the input's kind."""
        rows: Any = given
        if isinstance(given, Tensor):
            odd = given.is_complex() or given.is_quantized or given.is_meta or given.dtype == torch.bool
            rows, real = given.detach(), given.layout == torch.strided and not odd
        else:
            try:
                rows = np.asarray(given)  # JSON requests arrive as lists or with dtype object: true or "1" is no number
                rows = np.asarray(rows.tolist()) if rows.dtype == object else rows
                real = rows.dtype.kind in "uif" and not isinstance(given, np.ma.MaskedArray)  # a mask is not 0 and 255
            except (TypeError, ValueError):
                real = False
        if not real or rows.ndim == 0:
            raise ValueError("input: found something else than an array of real numbers")
        home = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
        parts = []
        with torch.no_grad():
            for places in [*batch_ranges(self.loaded.vae, len(rows))] or [range(0)]:
                batch = rows[places.start : places.stop]
                if not isinstance(batch, Tensor):  # a copy: it may be read-only
                    batch = torch.from_numpy(np.array(batch, np.uint8 if batch.dtype == np.uint8 else np.float64))
                exact = torch.uint8 if batch.dtype == torch.uint8 else torch.float64
                parts.append(function(read(batch.to(self.loaded.vae.device, exact)), places).to(home))
        answer = torch.cat(parts)
        return answer if isinstance(given, Tensor) else answer.numpy()

    def _pixels(self, values: Tensor) -> Tensor:
        """Numbers [N, C, H, W] -> uint8."""
        vae = self.loaded.vae
        if tuple(values.shape[1:]) != vae.shape:
            allowed = ", ".join(map(str, vae.shape))
            raise ValueError(f"pixels: found shape {list(values.shape)}, allowed: [N, {allowed}]")
        if not ((values >= 0) & (values <= 255) & (values == values.floor())).all():  # NaN is none of these
            raise ValueError("pixels: found other values than whole numbers from 0 to 255")
        if vae.likelihood.measure == "binary" and not ((values == 0) | (values == 255)).all():
            raise ValueError("pixels: this model takes binary images: found other values than 0 and 255")
        return values.to(torch.uint8)

    def _latents(self, values: Tensor) -> Tensor:
        """Numbers [N, Z] -> float32."""
        latent_dim, z = self.loaded.vae.latent_dim, values.float()
        if z.ndim != 2 or z.shape[1] != latent_dim:
            raise ValueError(f"latents: found shape {list(z.shape)}, allowed: [N, {latent_dim}]")
        if not torch.isfinite(z).all():
            raise ValueError("latents: found values that are not finite")
        return z


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: found {seed}, allowed: 0 to 2^63 - 1")
