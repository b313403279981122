"""The registered model's code: MLflow runs this file to load it (models from code; nothing is pickled).

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    model.predict(pixels, params={"method": "reconstruct"})

| method      | input                                    | output, float32                                    |
|-------------|------------------------------------------|----------------------------------------------------|
| reconstruct | pixels [N, C, H, W], whole numbers 0-255 | expected pixels on [0, 1] at the posterior means   |
| encode      | pixels                                   | posterior means [N, Z]                             |
| score       | pixels                                   | ELBO, nats per image, with one draw by `seed`: [N] |
| decode      | latents [N, Z], finite numbers           | expected pixels on [0, 1], [N, C, H, W]            |
| sample      | any array, e.g. zeros(1): it is not read | expected pixels of `n` prior draws by `seed`       |

Pixels may have any numeric dtype; a JSON request to `mlflow models serve` sends nested lists.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor

from vaeline.core.estimators import per_image_noise, per_image_uniform
from vaeline.core.objectives import elbo_terms
from vaeline.core.sampling import decoded, prior_samples, reconstructions
from vaeline.models import LoadedModel, load_model

BATCH = 512  # images at once


class Served(PythonModel):
    """A VAE behind MLflow's `predict`. Raises ValueError, in one line, for an input that it cannot read."""

    def __init__(self, loaded: LoadedModel | None = None) -> None:
        if loaded is not None:
            self.loaded = loaded

    def load_context(self, context: PythonModelContext) -> None:
        """Read model.safetensors and config.json."""
        self.loaded = load_model(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Do what `params["method"]` says; see the table above."""
        return self.answer(model_input, params or {})

    def answer(self, model_input: Any, params: dict[str, Any]) -> np.ndarray:
        """`predict` without MLflow's context."""
        chosen = {"method": "reconstruct", "n": 16, "seed": 0, **params}
        methods: dict[str, Callable[[], np.ndarray]] = {
            "reconstruct": lambda: _batched(self._reconstruct, self._pixels(model_input)),
            "encode": lambda: _batched(self._encode, self._pixels(model_input)),
            "score": lambda: self._score(self._pixels(model_input), int(chosen["seed"])),
            "decode": lambda: _batched(self._decode, self._latents(model_input)),
            "sample": lambda: self._sample(int(chosen["n"]), int(chosen["seed"])),
        }
        if chosen["method"] not in methods:
            raise ValueError(f"method: found {chosen['method']!r}, allowed: {', '.join(methods)}")
        with torch.inference_mode():
            return methods[chosen["method"]]()

    def _observe(self, pixels: Tensor) -> Tensor:
        return self.loaded.vae.likelihood.observe(pixels, None)

    def _reconstruct(self, pixels: Tensor) -> Tensor:
        return reconstructions(self.loaded.vae, self._observe(pixels))

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.loaded.vae.encode(self._observe(pixels)).mean

    def _decode(self, z: Tensor) -> Tensor:
        return decoded(self.loaded.vae, z)

    def _score(self, pixels: Tensor, seed: int) -> np.ndarray:
        """The noise is each image's own, by its place in the input: batches change nothing."""
        vae = self.loaded.vae
        if vae.deterministic:
            raise ValueError("method: 'score' needs an ELBO, which a plain autoencoder does not have")
        elbos = [torch.zeros(0)]
        for first in range(0, len(pixels), BATCH):
            batch = pixels[first : first + BATCH]
            indices = range(first, first + len(batch))
            noise = per_image_uniform(seed, indices, vae.shape) if vae.likelihood.uses_noise else None
            x = vae.likelihood.observe(batch, noise)
            elbos.append(elbo_terms(vae, x, per_image_noise(seed, indices, (vae.latent_dim,))).elbo)
        return torch.cat(elbos).numpy()

    def _sample(self, n: int, seed: int) -> np.ndarray:
        if not 1 <= n <= 100_000:
            raise ValueError(f"n: found {n}, allowed: 1 to 100000")
        noise = per_image_noise(seed, range(n), (self.loaded.vae.latent_dim,))
        return _batched(lambda z: prior_samples(self.loaded.vae, z), noise)

    def _pixels(self, given: Any) -> Tensor:
        """Any numbers -> uint8 [N, C, H, W]."""
        values = _numbers(given)
        shape = self.loaded.vae.shape
        if values.shape[1:] != shape:
            raise ValueError(f"pixels: found shape {list(values.shape)}, allowed: [N, {', '.join(map(str, shape))}]")
        pixels = values.astype(np.uint8) if values.size == 0 or _whole(values) else None
        if pixels is None:
            raise ValueError("pixels: found other values than whole numbers from 0 to 255")
        if self.loaded.vae.likelihood.measure == "binary" and np.isin(pixels, (0, 255), invert=True).any():
            raise ValueError("pixels: this model knows binary images: found other values than 0 and 255")
        return torch.from_numpy(pixels)

    def _latents(self, given: Any) -> Tensor:
        """Any numbers -> float32 [N, Z]."""
        values, latent_dim = _numbers(given), self.loaded.vae.latent_dim
        if values.ndim != 2 or values.shape[1] != latent_dim:
            raise ValueError(f"latents: found shape {list(values.shape)}, allowed: [N, {latent_dim}]")
        if not np.isfinite(values).all():
            raise ValueError("latents: found values that are not finite")
        return torch.from_numpy(values.astype(np.float32))


def _numbers(given: Any) -> np.ndarray:
    """An array with a numeric dtype; JSON requests arrive as dtype object."""
    values = np.asarray(given)
    try:
        return values.astype(np.float64) if values.dtype == object else values + 0
    except (TypeError, ValueError):
        raise ValueError("input: found something else than an array of numbers") from None


def _whole(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255 and (values % 1 == 0).all())


def _batched(function: Callable[[Tensor], Tensor], inputs: Tensor) -> np.ndarray:
    """Apply a function to a few images at once, so that memory stays bounded."""
    parts = [function(inputs[first : first + BATCH]) for first in range(0, max(len(inputs), 1), BATCH)]
    return torch.cat(parts).numpy()


set_model(Served())
