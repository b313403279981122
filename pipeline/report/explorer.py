"""`reports/explorer.html`: the latent space to touch, in one page with the decoder inside, which needs no server.

For dense networks; the page's JavaScript computes p(x|z)'s mean in double precision from the float32 weights.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from vaeline.core import likelihoods, networks
from vaeline.core.model import VAE
from vaeline.core.priors import Mixture
from vaeline.data.sources.dataset import Split

MOST_BYTES = 3_000_000  # of the page
SLIDERS, ATLAS_COLUMNS = 12, 20
FUNCTIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.GLU: "glu",
    networks.UnitInterval: "sigmoid",
}


@dataclass(frozen=True)
class LatentAxes:
    """Latent dimensions to traverse, and their scale."""

    order: Sequence[int]  # the most informative first
    labels: Sequence[str]  # [Z]
    centre: npt.NDArray[np.float64]  # [Z]
    spread: npt.NDArray[np.float64]  # [Z]


def explorer(
    model: VAE,
    test: Split,
    codes: npt.NDArray[np.float32],
    classes: Sequence[str] | None,
    axes: LatentAxes,
    remote: bool = False,
) -> str:
    """The page for a model and some test images with their codes [N, Z]; it names the reason where it cannot be.

    A `remote` one, of any network and size, asks the server that it comes from to decode.
    """
    layers = None if remote else _layers(model.decoder)
    if layers is None and not remote:
        return _page({"reason": "this page holds dense decoders only; this one has convolutions"})
    content = {
        "shape": model.shape,
        "layers": layers,
        "likelihood": _likelihood(model.likelihood),
        "prior": _prior(model),
        "autoencoder": not model.has_prior,
        "remote": remote,
        "codes": _base64(codes),
        "places": _places(codes),
        "atlas": _atlas(test.pixels),
        "columns": ATLAS_COLUMNS,
        "labels": None if test.labels is None else test.labels.tolist(),
        "classes": classes,
        "axes": [_axis(axes, z) for z in axes.order[:SLIDERS]],
    }
    page = _page(content)
    if (size := len(page.encode())) > MOST_BYTES and not remote:
        return _page({"reason": f"with all weights the page would have {size / 1e6:.1f} MB, allowed: 3 MB"})
    return page


def _page(content: dict[str, Any]) -> str:
    environment = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("explorer.html")
    return template.render(content={"remote": False} | content, reason=content.get("reason"))


def _layers(decoder: nn.Module) -> list[dict[str, Any]] | None:
    """The layers in order; None where one is not dense."""
    found: list[dict[str, Any]] = []
    for layer in decoder.children():
        if isinstance(layer, nn.Linear):
            found.append({"kind": "linear", "weight": _base64(layer.weight), "bias": _base64(layer.bias)})
        elif type(layer) in FUNCTIONS:
            found.append({"kind": FUNCTIONS[type(layer)]})
        elif not (isinstance(layer, nn.Unflatten) and layer.dim == 1 and found):
            return None
    return found


def _likelihood(likelihood: likelihoods.Likelihood) -> dict[str, Any]:
    """What the mean of p(x|z) takes beside the decoder's output."""
    match likelihood:
        case likelihoods.Gaussian(truncated=True):
            return {"kind": "truncated", "sigma": float(likelihood.sigma)}
        case likelihoods.Gaussian() | likelihoods.Laplace():
            return {"kind": "gaussian"}
        case likelihoods.DiscretisedLogistic():
            return {"kind": "logistic", "scale": _base64(likelihood.scale.flatten())}
        case likelihoods.ContinuousBernoulli():
            return {"kind": "continuous"}
        case likelihoods.Bernoulli():
            return {"kind": "bernoulli"}
    raise NotImplementedError(type(likelihood).__name__)


def _prior(model: VAE) -> dict[str, Any] | None:
    """The components of a mixture; None: N(0, I)."""
    if not isinstance(model.prior, Mixture):
        return None
    return {
        "upper": model.prior.log_weights().double().exp().cumsum(0).tolist(),
        "mean": _base64(model.prior.components().mean),
        "root": _base64(model.prior.roots()),
    }


def _axis(axes: LatentAxes, z: int) -> dict[str, Any]:
    """A slider; one whose codes are all alike has the scale 1."""
    scale = {"centre": float(axes.centre[z]), "spread": float(axes.spread[z]) or 1.0}
    return {"dimension": z, "label": axes.labels[z], **scale}


def _places(codes: npt.NDArray[np.float32]) -> list[list[float]]:
    """Codes on the map: along their first two principal components, in units of the larger deviation; [N, 2]."""
    centred = codes.astype(np.float64) - codes.mean(0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2] * np.sign(directions[:2].sum(1, keepdims=True))
    places = centred @ directions.T * np.sqrt(len(codes)) / max(sizes[0], np.finfo(np.float64).tiny)
    return [[round(x, 3), round(y, 3)] for x, y in np.pad(places, ((0, 0), (0, 2 - places.shape[1]))).tolist()]


def _atlas(images: npt.NDArray[np.uint8]) -> str:
    """All images [N, C, H, W] in rows of a PNG; two colours as their first, more than three as their first three."""
    count, channels, height, width = images.shape
    images = images[:, : 1 if channels < 3 else 3]
    rows = -(-count // ATLAS_COLUMNS)
    cells = np.zeros((rows * ATLAS_COLUMNS, *images.shape[1:]), np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, ATLAS_COLUMNS, -1, height, width).transpose(0, 3, 1, 4, 2)
    sheet = grid.reshape(rows * height, ATLAS_COLUMNS * width, -1)
    buffer = io.BytesIO()
    Image.fromarray(sheet if sheet.shape[2] == 3 else sheet[..., 0]).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _base64(values: Tensor | npt.NDArray[np.float32]) -> str:
    """Numbers as float32, little-endian, row by row."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
