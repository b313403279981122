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

from explorer_page import MODELS, check_controls, make, result_of, with_driver
from pipeline.report.explorer import explorer


def content_of(page: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(re.findall(r"^const content = (.*);$", page, re.MULTILINE)[0])
    return content


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_the_page_holds_the_decoder_the_codes_and_the_places_of_the_codes():
    """Mistake 19: the map of another pair of axes, samples of another prior."""
    model, test, codes, axes = make("logistic")
    page = explorer(model, test, codes, ("a", "b", "<c>"), axes)
    content, weights = content_of(page), list(model.decoder.parameters())
    layers = [floats(layer[key]) for layer in content["layers"] if "weight" in layer for key in ("weight", "bias")]
    assert [layer["kind"] for layer in content["layers"]] == ["linear", "silu", "linear", "silu", "linear"]
    for found, expected in zip(layers, weights, strict=True):
        assert (found == expected.detach().numpy().ravel()).all()
    assert (floats(content["codes"]).reshape(codes.shape) == codes).all()
    assert content["classes"] == ["a", "b", "<c>"]
    components = model.prior.components()
    assert np.allclose(floats(content["prior"]["mean"]), components.mean.detach().numpy().ravel())
    assert np.allclose(floats(content["prior"]["root"]) ** 2, components.log_variance.exp().detach().numpy().ravel())
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
    conv, test, codes, axes = make("conv")
    page = explorer(conv, test, codes, None, axes)
    assert "this page holds dense decoders only; this one has convolutions" in page
    assert "<script" not in page


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "conv"])
def test_every_control_shows_what_torch_decodes(name: str, browse: Callable[[str], str], tmp_path: Path):
    model, test, codes, axes = make(name)
    latents = (3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))).tolist()
    page = with_driver(explorer(model, test, codes, None, axes), latents)
    (tmp_path / "page.html").write_text(page)
    check_controls(result_of(browse((tmp_path / "page.html").as_uri())), model, latents, test, codes, axes)
