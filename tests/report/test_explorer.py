"""The explorer page: what it holds, when it cannot be, and in a real browser every control against torch."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.report.explorer import LatentAxes, explorer
from pipeline.stages.sample import latent_axes
from vaeline.config import Model
from vaeline.core.model import VAE, decoded
from vaeline.core.priors import Mixture
from vaeline.data.sources.dataset import Split
from vaeline.io.yaml_config import validate
from vaeline.training.build import build_model

MLP = {"kind": "mlp", "hidden": [9, 7]}
MODELS: dict[str, dict[str, Any]] = {
    "bernoulli": {"network": MLP | {"activation": "relu"}, "likelihood": {"kind": "bernoulli"}},
    "gaussian": {
        "network": MLP | {"activation": "tanh"},
        "likelihood": {"kind": "gaussian"},
        "prior": {"kind": "mixture", "components": 3},
    },
    "truncated": {
        "network": {"kind": "gated", "hidden": [8]},
        "likelihood": {"kind": "gaussian", "sigma": 0.2, "truncated": True},
        "prior": {"kind": "vamp", "components": 4},
    },
    "continuous": {"network": MLP | {"activation": "silu"}, "likelihood": {"kind": "continuous-bernoulli"}},
    "logistic": {
        "network": MLP | {"activation": "silu"},
        "likelihood": {"kind": "discretised-logistic", "scale": "pixel"},
        "prior": {"kind": "mixture", "components": 3},
    },
}
SHAPES = {"continuous": (3, 6, 5), "truncated": (2, 6, 5)}
DRIVER = """<pre id="found"></pre><script>
Element.prototype.setPointerCapture = () => {};  // which no pointer of a script has
const found = {}, z = value => Array.from(value);
const pixels = canvas => Array.from(canvas.getContext("2d").getImageData(0, 0, width, height).data);
const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
const press = (target, x, y) => { const box = target.getBoundingClientRect(); target.dispatchEvent(new PointerEvent(
  "pointerdown", {clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerId: 1, buttons: 1})); };
const picture = (name, latents, canvas) => { found[name] = {z: z(latents), pixels: pixels(canvas)}; };
const sampled = name => {
  found[name] = state.samples.map((latents, i) => ({z: z(latents), pixels: pixels(samples[i])})); };
function drive() {
  found.decoded = LATENTS.map(latents => z(decode(latents)));
  sampled("first"); set(element("seed"), 7); sampled("seed 7"); set(element("seed"), 1); sampled("again");
  element("next").click(); found.seed = element("seed").value;
  set(element("temperature"), 0); sampled("cold");
  picture("middle", mix(), element("mixture"));
  press(element("triangle"), 10 / 120, 98 / 112); found.weights = z(state.weights);
  picture("corner", mix(), element("mixture"));
  element("triangle").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"})); found.moved = z(state.weights);
  const [x, y] = spot(5); press(map, x / map.width, y / map.height); found.chosen = state.image;
  picture("original", state.z, element("original")); picture("reconstruction", state.z, element("reconstruction"));
  set(sliders[0].input, 1.5); picture("changed", state.z, element("changed"));
  element("reset").click(); picture("reset", state.z, element("changed"));
  element("corners").children[2].click(); found.corners = state.corners;
  picture("of the corner", code(5), corners[2].canvas);
  set(element("image"), 3); picture("third", state.z, element("original"));
  element("found").textContent = JSON.stringify(found);
}
const wait = () => state.z ? drive() : setTimeout(wait, 20);
wait();
</script>"""


def make(name: str) -> tuple[VAE, Split, np.ndarray, LatentAxes]:
    """A model with random weights, larger than new ones, and test images with their codes."""
    section = validate(Model, {"latent_dim": 4, "prior": {"kind": "standard-normal"}} | MODELS[name], "model")
    shape = SHAPES.get(name, (1, 6, 5))
    model = build_model(section, shape, "elbo", seed=1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(4)
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (30, *shape), dtype=np.uint8)
    if name == "bernoulli":
        pixels = (pixels > 127).astype(np.uint8) * 255
    with torch.no_grad():
        codes = model.encode(model.likelihood.observe(torch.from_numpy(pixels), None)).mean.numpy()
    return model, Split(pixels, random.integers(0, 3, 30)), codes, latent_axes(model, pixels)


def content_of(page: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(re.findall(r"^const content = (.*);$", page, re.MULTILINE)[0])
    return content


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def mean(model: VAE, latents: list[list[float]]) -> np.ndarray:
    """Expected pixels by torch, float32."""
    with torch.no_grad():
        return decoded(model, torch.tensor(latents, dtype=torch.float32)).flatten(1).numpy()


def rgba(images: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] on [0, 255] as a canvas has them: [N, H W 4]."""
    colours = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    opaque = np.concatenate([colours, np.full_like(colours[:, :1], 255)], axis=1)
    return opaque.transpose(0, 2, 3, 1).reshape(len(images), -1).astype(float)


def test_the_page_holds_the_decoder_the_codes_and_the_places_of_the_codes():
    model, test, codes, axes = make("logistic")
    page = explorer(model, test, codes, ("a", "b", "<c>"), axes)
    content, weights = content_of(page), list(model.decoder.parameters())
    held = [floats(layer[key]) for layer in content["layers"] if "weight" in layer for key in ("weight", "bias")]
    assert [layer["kind"] for layer in content["layers"]] == ["linear", "silu", "linear", "silu", "linear"]
    for found, expected in zip(held, weights, strict=True):
        assert (found == expected.detach().numpy().ravel()).all()
    assert (floats(content["codes"]).reshape(codes.shape) == codes).all()
    assert content["classes"] == ["a", "b", "<c>"]
    assert "<c>" not in page
    assert [axis["dimension"] for axis in content["axes"]] == list(axes.order)
    assert page == explorer(*make("logistic")[:3], ("a", "b", "<c>"), axes), "the same for the same"
    places = np.array(content["places"])
    centred = codes.astype(float) - codes.mean(0)
    variances = np.linalg.eigvalsh(centred.T @ centred / len(codes))[::-1]
    second_moments = places.T @ places / len(places)  # in units of the larger one
    assert np.allclose(second_moments, np.diag(variances[:2] / variances[0]), atol=0.002)
    assert not re.search(r"https?://|src=|@import", page), "nothing is loaded from elsewhere"


def test_a_network_that_the_page_cannot_hold_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    model, test, codes, axes = make("gaussian")
    monkeypatch.setattr("pipeline.report.explorer.MOST_BYTES", 1000)
    reason = "with all weights the page would have 0.0 MB, allowed: 3 MB"
    assert reason in explorer(model, test, codes, None, axes)
    network, likelihood = {"kind": "conv", "channels": [4], "hidden": 8}, {"kind": "bernoulli"}
    section = {"latent_dim": 4, "network": network, "likelihood": likelihood, "prior": {"kind": "standard-normal"}}
    conv = build_model(validate(Model, section, "model"), (1, 6, 5), "elbo", seed=1)
    page = explorer(conv, test, codes, None, axes)
    assert "this page holds dense decoders only; this one has convolutions" in page
    assert "<script" not in page


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_control_shows_what_torch_decodes(name: str, browse: Callable[[str], str], tmp_path: Path):
    model, test, codes, axes = make(name)
    latents = (3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))).tolist()
    page = explorer(model, test, codes, None, axes).replace("</body>", DRIVER.replace("LATENTS", json.dumps(latents)))
    (tmp_path / "page.html").write_text(page)
    found = json.loads(
        browse((tmp_path / "page.html").as_uri()).partition('<pre id="found">')[2].partition("</pre>")[0]
    )
    assert np.abs(np.array(found["decoded"]) - mean(model, latents)).max() < 1e-4

    def check(pictures: list[dict[str, Any]]) -> list[list[float]]:
        """Pictures are what torch decodes at their latents, to one of 255 levels; returns the latents."""
        z = [picture["z"] for picture in pictures]
        expected = 255 * mean(model, z).reshape(len(z), *model.shape)
        assert np.abs(np.array([picture["pixels"] for picture in pictures]) - rgba(expected)).max() <= 1
        return z

    first, other = check(found["first"]), check(found["seed 7"])
    assert len(first) == 20
    assert check(found["again"]) == first != other
    assert found["seed"] == "2"
    centres = model.prior.components().mean if isinstance(model.prior, Mixture) else torch.zeros(1, 4)
    assert torch.cdist(torch.tensor(check(found["cold"]), dtype=torch.float32), centres.detach()).amin(1).max() < 1e-5
    assert np.allclose(check([found["middle"]]), codes[:3].mean(0), atol=1e-5)
    assert np.allclose(found["weights"], [0, 1, 0], atol=0.02)
    assert np.allclose(check([found["corner"]]), np.array(found["weights"]) @ codes[:3], atol=1e-5)
    assert np.allclose(found["moved"], [0, 0.96, 0.04], atol=0.02), "an arrow key is 4 of the triangle's 100"
    assert (found["chosen"], found["corners"]) == (5, [0, 1, 5])
    originals = rgba(test.pixels)
    assert found["original"]["pixels"] == found["of the corner"]["pixels"] == originals[5].tolist()
    assert found["third"]["pixels"] == originals[3].tolist()
    assert np.allclose(check([found["reconstruction"], found["reset"]]), codes[[5, 5]])
    moved, z = codes[5].astype(float), axes.order[0]
    moved[z] = axes.centre[z] + 1.5 * axes.spread[z]
    assert np.allclose(check([found["changed"]]), moved, atol=1e-5)
