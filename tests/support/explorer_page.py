"""The explorer page driven in a browser: models for it, a script that moves every control, and what torch decodes."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.report.explorer import LatentAxes
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
    "laplace": {
        "network": MLP | {"activation": "relu"},
        "likelihood": {"kind": "laplace"},
        "prior": {"kind": "fitted", "components": 3},
    },
    "truncated": {
        "network": {"kind": "gated", "hidden": [8]},
        "likelihood": {"kind": "gaussian", "sigma": 0.2, "truncated": True},
        "prior": {"kind": "vamp", "components": 4},
    },
    "continuous": {"network": MLP | {"activation": "silu"}, "likelihood": {"kind": "continuous-bernoulli"}},
    "conv": {"network": {"kind": "conv", "channels": [4], "hidden": 8}, "likelihood": {"kind": "bernoulli"}},
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
const settled = () => new Promise(done => setTimeout(done, 300));  // answers are drawn when they come
const steps = {
  decoded: async () => { found.decoded = (await decodeAll(LATENTS)).map(z); },
  drawn: () => { let n = 0; found.drawn = z(drawn({uniform: () => 0.5, normal: () => ++n}, 0.5)); },
  first: () => {}, "seed 7": () => set(element("seed"), 7), again: () => set(element("seed"), 1),
  cold: () => { element("next").click(); found.seed = element("seed").value; set(element("temperature"), 0); },
  corner: () => { press(element("triangle"), 10 / 120, 98 / 112); found.weights = z(state.weights); },
  moved: () => element("triangle").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"})),
  chosen: () => { const [x, y] = spot(5); press(map, x / map.width, y / map.height); found.image = state.image; },
  changed: () => set(sliders[0].input, 1.5), reset: () => element("reset").click(),
  put: () => element("corners").children[2].click(), third: () => set(element("image"), 3),
};
async function drive() {
  for (const [name, step] of Object.entries(steps)) {
    await step(); await settled();
    const sampled = state.samples.map((latents, i) => ({z: z(latents), pixels: pixels(samples[i])}));
    const pictures = Object.fromEntries(["original", "reconstruction", "changed"].map(id => [id, pixels(element(id))]));
    const mixture = {weights: state.weights, corners: z(state.corners), pixels: pixels(element("mixture"))};
    found[name] ||= {sampled, mixture, z: z(state.z), third: pixels(corners[2].canvas), ...pictures};
  }
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
        for parameter in model.prior.parameters():
            parameter.add_(0.1)  # learned: variances are no longer 1
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (30, *shape), dtype=np.uint8)
    if name in ("bernoulli", "conv"):
        pixels = (pixels > 127).astype(np.uint8) * 255
    with torch.no_grad():
        codes = model.encode(model.likelihood.observe(torch.from_numpy(pixels), None)).mean.numpy()
    return model, Split(pixels, random.integers(0, 3, 30)), codes, latent_axes(model, pixels)


def mean(model: VAE, latents: Any) -> np.ndarray:
    """Expected pixels by torch, float32."""
    with torch.no_grad():
        return decoded(model, torch.as_tensor(latents, dtype=torch.float32)).flatten(1).numpy()


def rgba(images: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] on [0, 255] as a canvas has them: [N, H W 4]."""
    colours = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    opaque = np.concatenate([colours, np.full_like(colours[:, :1], 255)], axis=1)
    return opaque.transpose(0, 2, 3, 1).reshape(len(images), -1).astype(float)


def with_driver(page: str, latents: list[list[float]]) -> str:
    """The page with the script."""
    return page.replace("</body>", DRIVER.replace("LATENTS", json.dumps(latents)))


def result_of(document: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document.partition('<pre id="found">')[2].partition("</pre>")[0])
    return found


def check_controls(found: dict[str, Any], model: VAE, latents: Any, test: Split, codes: Any, axes: LatentAxes) -> None:
    """What the driver found after each step is what torch decodes: numbers to 1e-4, pictures to one of 255 levels."""
    assert np.abs(np.array(found["decoded"]) - mean(model, latents)).max() < 1e-4

    def shows(pictures: list[list[int]], z: Any) -> bool:
        z = np.asarray(z)
        expected = 255 * mean(model, z).reshape(len(z), *model.shape)
        return bool(np.abs(np.array(pictures) - rgba(expected)).max() <= 1)

    expected = 0.5 * torch.arange(1, 5)  # of temperature 0.5, with noise 1, 2, 3, 4 and 0.5 to choose by
    if isinstance(prior := model.prior, Mixture):
        k = int((prior.log_weights().exp().cumsum(0) <= 0.5).sum())
        root = prior.roots()[k]
        expected = prior.components().mean[k] + (root @ expected if root.ndim == 2 else root * expected)
    assert found["drawn"] == pytest.approx(expected.tolist(), abs=1e-5)
    samples = {}
    for name in ("first", "seed 7", "again", "cold"):
        samples[name] = [sample["z"] for sample in found[name]["sampled"]]
        assert shows([sample["pixels"] for sample in found[name]["sampled"]], samples[name])
    assert len(samples["first"]) == 20
    assert samples["again"] == samples["first"] != samples["seed 7"]
    assert found["seed"] == "2"
    centres = model.prior.components().mean if isinstance(model.prior, Mixture) else torch.zeros(1, 4)
    assert torch.cdist(torch.tensor(samples["cold"], dtype=torch.float32), centres.detach()).amin(1).max() < 1e-5
    for name, weights in (("first", [1 / 3, 1 / 3, 1 / 3]), ("corner", [0, 1, 0]), ("moved", [0, 0.96, 0.04])):
        mixture = found[name]["mixture"]
        assert np.allclose(mixture["weights"], weights, atol=0.02), "an arrow key is 4 of the triangle's 100"
        assert shows([mixture["pixels"]], [np.array(mixture["weights"]) @ codes[:3]])
    originals, moved, z = rgba(test.pixels), codes[5].astype(float), axes.order[0]
    moved[z] = axes.centre[z] + 1.5 * axes.spread[z]
    for name, image, code in (
        ("first", 0, codes[0]),
        ("chosen", 5, codes[5]),
        ("changed", 5, moved),
        ("reset", 5, codes[5]),
    ):
        assert found[name]["original"] == originals[image].tolist()
        assert np.allclose(found[name]["z"], code, atol=1e-5)
        assert shows([found[name]["reconstruction"], found[name]["changed"]], [codes[image], code])
    assert (found["image"], found["put"]["mixture"]["corners"]) == (5, [0, 1, 5])
    assert found["put"]["third"] == originals[5].tolist()
    assert found["third"]["original"] == originals[3].tolist()
