"""`vaeline explore`: the explorer page on loopback, for every network, with images of the user's own.

The page is that of `reports/explorer.html`; here the model decodes, reconstructs and scores. Other web pages get no
answer: see `pipeline.services.guarded_app`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import vaeline
from pipeline.report.explorer import explorer
from pipeline.services.dvc_command import Log
from pipeline.services.guarded_app import LOOPBACK, guard
from pipeline.services.servers import HOST, free_port
from pipeline.stages.sample import ON_THE_MAP, latent_axes
from vaeline.data.prepared import centre, open_split, read_manifest
from vaeline.data.sources.images import read_image
from vaeline.errors import UserError
from vaeline.evaluation.drift import compare, quantiles
from vaeline.io.safe_read import parse_json
from vaeline.io.workspace import Workspace
from vaeline.serving.inference import TrainedModel
from vaeline.training.device import pick_device

LEVEL = 0.05  # how often an image like the test data may be called unlike them
MOST_LATENTS, LARGEST_BODY = 64, 1 << 25  # points of a request, bytes
FITS = ("crop", "pad", "stretch")


def serve(workspace: Workspace, uri: str, port: int, echo: Log) -> None:
    """Serve the page until Ctrl-C. Raises UserError where the model or the prepared test images cannot be used."""
    app = create_app(*load(workspace, uri))
    port = free_port(port)
    echo(f"explore {uri}: http://{HOST}:{port} (Ctrl-C stops it)")
    uvicorn.run(app, host=HOST, port=port, log_level="warning")


def load(workspace: Workspace, uri: str) -> tuple[TrainedModel, str]:
    """The model at an address, and its page with prepared test images. Raises UserError where they do not fit."""
    model, manifest = vaeline.load(uri, pick_device()), read_manifest(workspace.prepared)
    if (shape := model.loaded.vae.shape) != manifest.shape:
        found, wanted = (" x ".join(map(str, sizes)) for sizes in (manifest.shape, shape))
        raise UserError(f"{workspace.prepared}: its images are {found} (C x H x W), those of {uri} are {wanted}")
    some = open_split(workspace.prepared, "test").take(ON_THE_MAP, seed=1)
    try:
        codes = model.encode(some.pixels)
    except ValueError as error:
        raise UserError(f"{workspace.prepared}: {error}") from None
    axes = latent_axes(model.loaded.vae, some.pixels)
    return model, explorer(model.loaded.vae, some, codes, manifest.classes, axes, remote=True)


def create_app(model: TrainedModel, page: str) -> ASGIApp:
    """The guarded application: `/` the page, `/decode` latents to pixels, `/image` a file to its code and verdict."""

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def decode(request: Request) -> Response:
        return await _answer(request, lambda body: _decode(model, body))

    async def image(request: Request) -> Response:
        return await _answer(request, lambda body: examine(model, body, request.query_params.get("fit", "")))

    answers = {"/decode": decode, "/image": image}
    routes = [Route("/", show), *(Route(path, answer, methods=["POST"]) for path, answer in answers.items())]
    return guard(Starlette(routes=routes), LOOPBACK)


async def _answer(request: Request, answer: Callable[[bytes], Any]) -> Response:
    """What `answer` makes of the request's body as JSON; 400 with its error line."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            return JSONResponse({"error": f"too large, allowed: {LARGEST_BODY >> 20} MB"}, 413)
    try:
        return JSONResponse(await run_in_threadpool(answer, bytes(body)))
    except (UserError, ValueError) as error:
        return JSONResponse({"error": str(error)}, 400)


def _decode(model: TrainedModel, body: bytes) -> list[list[float]]:
    """Expected pixels on [0, 1] of latents, [N, Z] in JSON: [N, C H W]."""
    try:
        latents = np.array(parse_json(body, "latents"), np.float32)
    except (TypeError, ValueError, OverflowError):
        latents = np.empty(0, np.float32)
    if latents.ndim != 2:
        raise ValueError("latents: allowed: a list of lists of numbers")
    if len(latents) > MOST_LATENTS:
        raise ValueError(f"latents: found {len(latents)}, allowed: {MOST_LATENTS} at once")
    pixels: list[list[float]] = np.round(model.decode(latents).reshape(len(latents), -1), 4).tolist()
    return pixels


def examine(model: TrainedModel, content: bytes, fit: str) -> dict[str, Any]:
    """Pixels and code of an image file, fitted to the model, and in words its ELBO beside the test images'.

    Raises UserError or ValueError for what is no image, and for what the model cannot take.
    """
    if fit not in FITS:
        raise ValueError(f"fit: found {fit!r}, allowed: {', '.join(FITS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            pixels = centre(read_image(path, **model.loaded.fitted, fit=fit)[None], model.loaded.vae.shape)
        except UserError as error:
            raise UserError(str(error).replace(f"{path}: ", "")) from None
    found = {"pixels": (pixels / 255).ravel().tolist(), "code": model.encode(pixels)[0].tolist()}
    if model.loaded.vae.deterministic:
        return found | {"words": "an autoencoder has no ELBO"}
    elbo, words = model.score(pixels).astype(np.float64), ""
    if model.reference is not None:
        verdict, (place,) = compare(model.reference, elbo, LEVEL), quantiles(model.reference, elbo)
        like = "drift: it does not look" if verdict.drift else "no drift: it looks"
        words = f", higher than {place:.1%} of the test images' ELBOs; {like} like them (p-value {verdict.p_value:.2g})"
    return found | {"words": f"ELBO {elbo[0]:.2f} nats{words}"}
