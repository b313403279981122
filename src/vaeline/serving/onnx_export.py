"""ONNX export, for consumers without torch: encoder and decoder as graphs, and a JSON file that describes their use.

    encoder.onnx   pixels uint8 [N, C, H, W]   -> mean, log_variance of q(z|x), float32 [N, Z]
    decoder.onnx   z float32 [N, Z]            -> pixels float32 [N, C, H, W], expected, on [0, 1]
    prior.npz      weights [K], mean [K, Z] and root, [K, Z] or [K, Z, Z], of the Gaussians that p(z) is a mixture of
    model.json     digests, shapes, opset, preprocessing; "prior" is null for a plain autoencoder, which has none

N is free. What a uint8 pixel becomes before the network sees it is part of the encoder's graph, so that no consumer
can get it wrong. The same model and the same torch give the same bytes.
"""

import hashlib
import io
import itertools
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaeline.core.model import VAE, decoded
from vaeline.core.priors import Mixture
from vaeline.errors import UserError, optional_imports
from vaeline.io.atomic_write import write_files
from vaeline.serving.model_files import LoadedModel

ENCODER, DECODER, PRIOR, ABOUT = "encoder.onnx", "decoder.onnx", "prior.npz", "model.json"
OPSET = 18
TOLERANCE = 1e-5  # between ONNX Runtime and torch: |difference| <= TOLERANCE * max(1, |torch|)
ROUNDING, MOST = 10, 1e-2  # or so many times that of torch in float32 from float64, which grows with a network; at most
LARGEST = 2**31 - 2**20  # bytes: protobuf holds no more, and the graph needs some itself
EXAMPLES = 9  # inputs on which both are compared, all at once and one alone
OBSERVED = {  # likelihood -> what its `observe` makes of a pixel without noise
    "bernoulli": "x = pixels / 255; grey pixels give NaN",
    "gaussian": "x = (pixels + 1/2) / 256",
    "laplace": "x = (pixels + 1/2) / 256",
    "continuous-bernoulli": "x = (pixels + 1/2) / 256",
    "discretised-logistic": "x = pixels / 255",
}


class Graph(nn.Module):
    """A function of the model's weights and one tensor, as the module that torch exports."""

    def __init__(self, vae: VAE, function: Callable[[VAE, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.vae, self.function = vae, function

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the function."""
        return self.function(self.vae, given)


def export_onnx(loaded: LoadedModel, folder: Path) -> tuple[float, float]:
    """Write the files of a model on the CPU; those of an earlier export are replaced together.

    Returns the largest difference of encoder and decoder between ONNX Runtime and torch, in parts of max(1, |value|).
    Raises UserError, before anything is written, where one is above the tolerance or the model too large for a file.
    """

    def encoder(vae: VAE, pixels: Tensor) -> tuple[Tensor, ...]:
        posterior = vae.encode(vae.likelihood.observe(pixels, None))
        return posterior.mean, posterior.log_variance

    vae, config = loaded.vae, loaded.config
    if (size := sum(tensor.nbytes for tensor in vae.state_dict().values())) > LARGEST:
        raise UserError(f"the model's weights are {size} bytes; allowed: {LARGEST}, for ONNX keeps them in one message")
    generator = torch.Generator().manual_seed(EXAMPLES)
    images = torch.randint(0, 256, (EXAMPLES, *vae.shape), generator=generator, dtype=torch.uint8)
    images[0], images[1] = 0, 255
    if vae.likelihood.measure == "binary":
        images = 255 * (images > 127).to(torch.uint8)
    latents = 2 * torch.randn(EXAMPLES, vae.latent_dim, generator=generator)
    names = ("mean", "log_variance")
    encoder_bytes, encoder_error = _checked_graph(loaded, encoder, ENCODER, {"pixels": images}, names)
    decoder_bytes, decoder_error = _checked_graph(
        loaded, lambda vae, z: (decoded(vae, z),), DECODER, {"z": latents}, ["pixels"]
    )
    contents, sigma = {ENCODER: encoder_bytes, DECODER: decoder_bytes}, vae.likelihood.sigma
    if vae.has_prior:
        contents[PRIOR] = _gaussians(vae)
    named = {file: {"file": file, "sha256": hashlib.sha256(content).hexdigest()} for file, content in contents.items()}
    draw = {"formula": "k by weights; z = mean[k] + root[k] * standard normal noise, or root[k] @ noise"}
    pixel_shape, latent_shape = ["N", *vae.shape], ["N", vae.latent_dim]
    about = {
        "format": 1,
        "model_digest": loaded.digest,
        "data_digest": config.data.digest,
        "opset": OPSET,
        "encoder": {
            **named[ENCODER],
            "inputs": {"pixels": {"dtype": "uint8", "shape": pixel_shape, "values": "0 to 255"}},
            "outputs": {name: {"dtype": "float32", "shape": latent_shape} for name in names},
        },
        "decoder": {
            **named[DECODER],
            "inputs": {"z": {"dtype": "float32", "shape": latent_shape}},
            "outputs": {"pixels": {"dtype": "float32", "shape": pixel_shape, "values": "0 to 1, expected"}},
        },
        "preprocessing": {"where": f"inside {ENCODER}", "formula": OBSERVED[config.model.likelihood.kind]},
        "posterior": "z = mean + exp(log_variance / 2) * standard normal noise",
        "prior": named[PRIOR] | draw if vae.has_prior else None,
        "likelihood": {"kind": config.model.likelihood.kind, "sigma": None if sigma is None else float(sigma)},
    }
    contents[ABOUT] = (json.dumps(about, indent=2) + "\n").encode()
    write_files({folder / name: content for name, content in contents.items()})
    if not vae.has_prior:
        (folder / PRIOR).unlink(missing_ok=True)  # of an earlier export
    return encoder_error, decoder_error


def _gaussians(vae: VAE) -> bytes:
    """The prior as a mixture of Gaussians, one if it is N(0, I)."""
    weights, mean = torch.ones(1), torch.zeros(1, vae.latent_dim)
    root = torch.ones_like(mean)
    if isinstance(prior := vae.prior, Mixture):
        weights, mean, root = prior.log_weights().double().softmax(0), prior.components().mean, prior.roots()
    buffer = io.BytesIO()
    np.savez(buffer, weights=weights.numpy(), mean=mean.numpy(), root=root.numpy())
    return buffer.getvalue()


def _checked_graph(
    loaded: LoadedModel,
    function: Callable[[VAE, Tensor], tuple[Tensor, ...]],
    file: str,
    example: dict[str, Tensor],
    outputs: Sequence[str],
) -> tuple[bytes, float]:
    """ONNX graph of a function of this input, and its largest difference from torch, within the tolerance."""
    with optional_imports("onnx"):
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401

    graph, ((name, given),) = Graph(loaded.vae, function).eval(), example.items()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own code
        program = torch.onnx.export(
            graph,
            (given,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None  # it is, with dynamo and without a file's name
    model = program.model_proto
    parts = (model.graph.node, model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output)
    for part in (model, model.graph, *itertools.chain(*parts)):
        del part.metadata_props[:]  # stack traces with this machine's paths
    for key, value in {"model_digest": loaded.digest, "data_digest": loaded.config.data.digest}.items():
        model.metadata_props.add(key=f"vaeline.{key}", value=value)
    content = bytes(model.SerializeToString(deterministic=True))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst, allowed, exact = 0.0, TOLERANCE, deepcopy(graph).double()
    for batch in (given, given[:1]):
        with torch.inference_mode():
            ours, true = ([output.numpy() for output in found] for found in (graph(batch), exact(batch.double())))
        worst = max(worst, _difference(session.run(None, {name: batch.numpy()}), ours))
        allowed = max(allowed, min(MOST, ROUNDING * _difference(ours, true)))
    if worst > allowed:
        raise UserError(f"{file}: differs from torch by {worst:.1e}; allowed: {allowed:.0e}; nothing was written")
    return content, worst


def _difference(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    """The largest |difference| / max(1, |wanted|); infinite where one is not finite."""
    parts = [np.abs(a - b) / np.maximum(1, np.abs(b)) for a, b in zip(found, wanted, strict=True)]
    return max(float(part.max()) if np.isfinite(part).all() else math.inf for part in parts)
