"""ONNX export, for consumers without torch: encoder and decoder as graphs, and a JSON file that describes their use.

    encoder.onnx   pixels uint8 [N, C, H, W]   -> mean, log_variance of q(z|x), float32 [N, Z]
    decoder.onnx   z float32 [N, Z]            -> pixels float32 [N, C, H, W], expected, on [0, 1]
    model.json     digests, shapes, opset, preprocessing

N is free. What a uint8 pixel becomes before the network sees it is part of the encoder's graph, so that no consumer
can get it wrong. The same model and the same torch give the same bytes.
"""

import hashlib
import importlib
import itertools
import json
import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaeline.core.model import VAE
from vaeline.core.sampling import decoded
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_folder
from vaeline.serving.model_files import LoadedModel

ENCODER, DECODER, ABOUT = "encoder.onnx", "decoder.onnx", "model.json"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-5  # between ONNX Runtime and torch: |difference| <= TOLERANCE * max(1, |torch|)
LARGEST = 2**31 - 2**20  # bytes: protobuf holds no more, and the graph needs some itself
BATCHES = (1, 2, 9)  # images at once when both are compared
OBSERVED = {  # likelihood -> what its `observe` makes of a pixel without noise
    "bernoulli": "x = pixels / 255; grey pixels give NaN",
    "gaussian": "x = (pixels + 1/2) / 256",
    "continuous-bernoulli": "x = (pixels + 1/2) / 256",
    "discretised-logistic": "x = pixels / 255",
}


class Encoder(nn.Module):
    """uint8 pixels -> mean and log variance of q(z|x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] -> [N, Z], [N, Z]."""
        posterior = self.vae.encode(self.vae.likelihood.observe(pixels, None))
        return posterior.mean, posterior.log_variance


class Decoder(nn.Module):
    """z -> expected pixels on [0, 1]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> tuple[Tensor]:
        """[N, Z] -> [N, C, H, W]."""
        return (decoded(self.vae, z),)


def export_onnx(loaded: LoadedModel, folder: Path) -> tuple[float, float]:
    """Write the three files, once both graphs agree with torch; an earlier export in `folder` is replaced as a whole.

    Returns the largest difference of encoder and decoder between ONNX Runtime and torch, in parts of max(1, |value|).

    `loaded` is on the CPU. Raises UserError where the packages of the extra `onnx` are missing, `folder` holds
    something else, the model is too large for one ONNX file, or a graph differs from torch by more than TOLERANCE.
    """
    _require_packages()
    folder = Path(os.path.normpath(folder.absolute()))
    _refuse_foreign(folder)
    vae = loaded.vae
    if (size := sum(tensor.nbytes for tensor in vae.state_dict().values())) > LARGEST:
        raise UserError(f"the model's weights are {size} bytes; allowed: {LARGEST}, for ONNX keeps them in one message")
    pixels, latents = ([make(vae, count) for count in BATCHES] for make in (_example_pixels, _example_latents))
    encoder = _onnx_bytes(Encoder(vae), pixels[-1], "pixels", ("mean", "log_variance"), loaded)
    encoder_error = _difference(encoder, Encoder(vae), pixels, ENCODER)
    decoder = _onnx_bytes(Decoder(vae), latents[-1], "z", ("pixels",), loaded)
    decoder_error = _difference(decoder, Decoder(vae), latents, DECODER)
    about = json.dumps(describe(loaded, encoder, decoder), indent=2) + "\n"
    try:
        write_folder(folder, {ENCODER: encoder, DECODER: decoder, ABOUT: about.encode()})
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None
    return encoder_error, decoder_error


def describe(loaded: LoadedModel, encoder: bytes, decoder: bytes) -> dict[str, Any]:
    """Content of model.json."""
    likelihood, sigma = loaded.config.model.likelihood.kind, loaded.vae.likelihood.sigma
    images, latents = ["N", *loaded.vae.shape], ["N", loaded.vae.latent_dim]
    return {
        "format": 1,
        "model_digest": loaded.digest,
        "data_digest": loaded.config.data.digest,
        "opset": OPSET,
        "encoder": {
            "file": ENCODER,
            "sha256": hashlib.sha256(encoder).hexdigest(),
            "inputs": {"pixels": {"dtype": "uint8", "shape": images, "values": "0 to 255"}},
            "outputs": {name: {"dtype": "float32", "shape": latents} for name in ("mean", "log_variance")},
        },
        "decoder": {
            "file": DECODER,
            "sha256": hashlib.sha256(decoder).hexdigest(),
            "inputs": {"z": {"dtype": "float32", "shape": latents}},
            "outputs": {"pixels": {"dtype": "float32", "shape": images, "values": "0 to 1, expected"}},
        },
        "preprocessing": {"where": f"inside {ENCODER}", "formula": OBSERVED[likelihood]},
        "posterior": "z = mean + exp(log_variance / 2) * standard normal noise",
        "likelihood": {"kind": likelihood, "sigma": None if sigma is None else float(sigma)},
    }


def _require_packages() -> None:
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"export: the package {name} is not installed: pip install 'vaeline[onnx]'") from None


def _refuse_foreign(folder: Path) -> None:
    """An export replaces an export, or what is not there yet, and nothing else."""
    allowed = "allowed: a new or empty folder, or an earlier export"
    if (folder.exists() and folder.samefile(".")) or folder.is_mount():
        raise UserError(f"{folder}: cannot be replaced as a whole; allowed: a folder within it")
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UserError(f"{folder}: is not a folder; {allowed}")
    if foreign := sorted({entry.name for entry in folder.iterdir()} - {ENCODER, DECODER, ABOUT}):
        raise UserError(f"{folder}: holds {foreign[0]}; {allowed}")


def _onnx_bytes(graph: nn.Module, example: Tensor, given: str, results: Sequence[str], loaded: LoadedModel) -> bytes:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own code
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[given],
            output_names=list(results),
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None  # it is, with dynamo and without a file's name
    model = program.model_proto
    parts = (model.graph.node, model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output)
    for part in (model, model.graph, *itertools.chain(*parts)):
        del part.metadata_props[:]  # stack traces with this machine's paths
    for key, value in {"model_digest": loaded.digest, "data_digest": loaded.config.data.digest}.items():
        model.metadata_props.add(key=f"vaeline.{key}", value=value)
    return bytes(model.SerializeToString(deterministic=True))


def _example_pixels(vae: VAE, count: int) -> Tensor:
    """Seeded noise, black and white where the model takes nothing else; the first image is black, the second white."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, *vae.shape), generator=generator, dtype=torch.uint8)
    if vae.likelihood.measure == "binary":
        pixels = 255 * (pixels > 127).to(torch.uint8)
    for index, value in enumerate((0, 255)):
        if count > index + 1:
            pixels[index] = value
    return pixels


def _example_latents(vae: VAE, count: int) -> Tensor:
    """Seeded draws of the standard normal, and as many with twice its spread."""
    z = torch.randn(count, vae.latent_dim, generator=torch.Generator().manual_seed(count))
    return torch.cat([z, 2 * z]) if count > 1 else z


def _difference(content: bytes, graph: nn.Module, inputs: Sequence[Tensor], name: str) -> float:
    """Largest difference over all inputs and outputs. Raises UserError where it is above TOLERANCE."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for given in inputs:
        with torch.inference_mode():
            expected = [output.numpy() for output in graph(given)]
        found = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        for theirs, ours in zip(found, expected, strict=True):
            difference = np.abs(theirs - ours) / np.maximum(1, np.abs(ours))
            worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else math.inf
    if worst > TOLERANCE:
        raise UserError(f"{name}: differs from torch by {worst:.1e}; allowed: {TOLERANCE:.0e}; nothing was written")
    return worst
