"""Model files: safetensors and JSON, saved whole and loaded with strict checks. Nothing is unpickled."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat
from safetensors.torch import save as safetensors_save

from vaeline import config
from vaeline.config.data import Binarise
from vaeline.core.model import VAE
from vaeline.data.prepared import manifest_digest, read_manifest
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_files
from vaeline.io.digests import value_digest
from vaeline.io.safe_read import read_bounded
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import Positive, Section, validate, validate_json
from vaeline.training.build import build_model
from vaeline.training.initial import CONFIG_BYTES, HEADER_BYTES, check_tensors, parse_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Channels = Annotated[int, Field(ge=1, le=4)]
Side = Annotated[int, Field(ge=1, le=4096)]  # as LARGEST_SIDE of images


class DataIdentity(Section):
    """The data that a model was trained on."""

    digest: str
    source: str
    binarise: Binarise
    uncropped: Annotated[tuple[Side, Side], Field(strict=False)] | None = None  # H, W that data.crop was taken from


class Description(Section):
    """The content of a model's config.json."""

    format: Literal[1]
    shape: Annotated[tuple[Channels, Side, Side], Field(strict=False)]  # C, H, W; JSON has no tuples
    model: config.Model
    objective: Literal["elbo", "iwae", "autoencoder"]
    precision: Literal["float32", "bfloat16"] = "float32"  # of training's matrix products
    data: DataIdentity
    # (z - shift_factor) * scale_factor has mean 0 and variance 1: for latent diffusion on an AutoencoderKL's latents
    shift_factor: FiniteFloat | None = None
    scale_factor: Positive | None = None


@dataclass(frozen=True)
class LoadedModel:
    """Model read from a folder, ready for inference, with its config.json."""

    vae: VAE
    config: Description
    digest: str  # SHA-256 over both files

    @property
    def fitted(self) -> dict[str, Any]:
        """What `read_image` makes of any image for this model, before a crop from the centre: W x H and mode."""
        channels, *sides = self.vae.shape
        height, width = self.config.data.uncropped or sides
        return {"size": (width, height), "mode": "L" if channels == 1 else "RGB"}


def save_model(folder: Path, vae: VAE, description: dict[str, Any]) -> None:
    """Write model.safetensors and config.json: the same model gives the same bytes; each file appears whole or not.

    `description` holds model, objective and data (see `Description`); the other keys may be left out.
    Raises UserError, before anything is written, where it does not describe a model.
    """
    full = {"format": 1, "shape": list(vae.shape), **description}
    validate(Description, full, str(folder / CONFIG))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    text = json.dumps(full, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_files({folder / WEIGHTS: safetensors_save(tensors), folder / CONFIG: text.encode()})


def load_model(
    folder: Path, device: str | torch.device = "cpu", read: Callable[[Path, int], bytes] = read_bounded
) -> LoadedModel:
    """Read a saved model, in evaluation mode and without gradients. Nothing large is read or allocated unasked.

    `read` gives the bytes of a file, at most so many. Raises UserError, naming the file, where one is missing, torn,
    too large or of another format, or where the tensors are not exactly those that config.json describes, finite and
    float32.
    """
    path = folder / CONFIG
    described = read(path, CONFIG_BYTES)
    description = validate_json(Description, described, path)
    try:
        with torch.device("meta"):  # shapes and dtypes alone, however large
            vae = build_model(description.model, description.shape, description.objective)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    size = sum(tensor.nbytes for tensor in vae.state_dict().values())
    weights = read(folder / WEIGHTS, size + HEADER_BYTES)
    tensors = parse_tensors(weights, folder / WEIGHTS)
    check_tensors(tensors, vae.state_dict(), folder / WEIGHTS, CONFIG)
    vae.load_state_dict(tensors, assign=True)
    vae.requires_grad_(False).eval().to(device)
    contents = {WEIGHTS: weights, CONFIG: described}
    digest = value_digest({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    return LoadedModel(vae, description, digest)


def load_trained(workspace: Workspace, device: str | torch.device = "cpu") -> LoadedModel:
    """The trained model, on a device. Raises UserError where it is missing or damaged.

    So too where `data/prepared` is not what it was trained on: the test split may hold its training images.
    """
    loaded, manifest = load_model(workspace.model, device), read_manifest(workspace.prepared)
    of = f"{workspace.model / CONFIG}: was trained on"
    if loaded.config.shape != manifest.shape:
        found, now = (" x ".join(map(str, shape)) for shape in (loaded.config.shape, manifest.shape))
        raise UserError(f"{of} {found} images, data/prepared has {now}; run `dvc repro train`")
    if loaded.config.data.digest != (digest := manifest_digest(workspace.prepared)):
        raise UserError(
            f"{of} the data {loaded.config.data.digest[:12]}, data/prepared is {digest[:12]}; run `dvc repro train`"
        )
    return loaded
