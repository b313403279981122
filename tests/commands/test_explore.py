"""`vaeline explore`: every control against torch for a convolutional network, an image of the user's own, errors."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from command_line import vaeline
from explorer_page import check_controls, make, result_of, with_driver
from pipeline.commands.explore import create_app, load
from pipeline.report.explorer import explorer
from pipeline.services.servers import free_port
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import DataIdentity, LoadedModel

OWN = """
steps["own image"] = async () => {
  const files = new DataTransfer(), bytes = Uint8Array.from(atob("PNG"), letter => letter.charCodeAt(0));
  files.items.add(new File([bytes], "mine.png")); element("file").files = files.files;
  element("file").dispatchEvent(new Event("change")); await settled(); found.words = element("name").textContent;
};
steps["own corner"] = () => element("corners").children[2].click();
steps["no image"] = async () => {
  const files = new DataTransfer(); files.items.add(new File(["text"], "mine.txt"));
  element("file").files = files.files;
  element("file").dispatchEvent(new Event("change")); await settled(); found.error = element("error").textContent;
};
const wait ="""


def trained(name: str, reference: np.ndarray | None = None) -> tuple[TrainedModel, tuple[Any, ...]]:
    """A model in memory, as it is loaded, and the parts of its page."""
    model, *parts = make(name)
    config: Any = SimpleNamespace(data=DataIdentity(digest="", source="", binarise="none"))
    return TrainedModel(LoadedModel(model, config, ""), reference), (model, *parts)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def served(app: Any) -> Iterator[str]:
    port = free_port(0)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_every_control_of_the_served_page_and_an_image_of_ones_own(browse: Callable[[str], str]):
    model, (vae, test, codes, axes) = trained("conv", np.linspace(-30, -10, 100))
    latents = (3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))).tolist()
    mine = (np.arange(30).reshape(6, 5) % 2 * 255).astype(np.uint8)
    page = with_driver(explorer(vae, test, codes, None, axes, remote=True), latents)
    page = page.replace("\nconst wait =", OWN.replace("PNG", base64.b64encode(png(mine)).decode()))
    with served(create_app(model, page)) as address:
        found = result_of(browse(address))
    check_controls(found, vae, latents, test, codes, axes)
    own = found["own image"]
    assert np.array(own["original"]).reshape(6, 5, 4)[..., 0].tolist() == mine.tolist()
    assert np.allclose(own["z"], model.encode(mine[None, None])[0], atol=1e-5)
    assert found["own corner"]["third"] == own["original"]
    elbo = model.score(mine[None, None])[0]
    assert found["words"].startswith(f"mine.png: ELBO {elbo:.2f} nats, higher than ")
    assert found["error"].startswith("cannot be decoded: ")


@pytest.mark.parametrize(
    ("path", "content", "error"),
    [
        ("decode", b"[[1, 2, 3]]", r"latents: found shape \[1, 3\], allowed: \[N, 4\]"),
        ("decode", b"{", "latents: .*"),
        ("decode", b"5", "latents: allowed: a list of lists of numbers"),
        ("decode", b"[[{}]]", "latents: allowed: a list of lists of numbers"),
        ("decode", b"[[" + b"9" * 400 + b"]]", "latents: allowed: a list of lists of numbers"),
        ("decode", b"[" * 3000, "latents: is nested deeper than .* levels"),
        ("decode", f"[{','.join(['[1, 2, 3, 4]'] * 65)}]".encode(), "latents: found 65, allowed: 64 at once"),
        ("image?fit=crop", b"text", "cannot be decoded: .*; allowed: a complete PNG or JPEG image"),
        ("image?fit=crop", png(np.full((6, 5), 100, np.uint8)), "this model takes binary images"),
        ("image", b"", "fit: found '', allowed: crop, pad, stretch"),
    ],
)
def test_what_the_model_cannot_take_is_one_line(path: str, content: bytes, error: str):
    model, _ = trained("conv")
    answer = TestClient(create_app(model, ""), base_url="http://127.0.0.1").post(f"/{path}", content=content)
    assert answer.status_code == 400
    assert len(answer.json()["error"].splitlines()) == 1
    with pytest.raises(UserError, match=error):
        raise UserError(answer.json()["error"])


def test_a_foreign_page_gets_no_answer():
    model, _ = trained("conv")
    client = TestClient(create_app(model, "page"), base_url="http://127.0.0.1")
    assert client.get("/").text == "page"
    assert client.post("/decode", content=b"[]", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_a_model_that_is_not_there_is_one_line(toy: Path):
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: there is no tracking store at [^\n]*$"):
        vaeline("explore")


def test_the_page_is_made_of_the_prepared_test_images_and_others_than_the_models_are_refused(
    outputs: Callable[..., Path], store: Path
):
    path = outputs(folder=store.parents[1]) / "data/prepared/manifest.json"
    model, page = load(current_workspace(), "models")
    assert model.loaded.vae.shape == (1, 5, 4)
    assert "codes of 20 test images" in page
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [1, 6, 5]}))
    with pytest.raises(UserError, match=r"its images are 1 x 6 x 5 \(C x H x W\), those of models are 1 x 5 x 4"):
        load(current_workspace(), "models")
