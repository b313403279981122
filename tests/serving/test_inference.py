"""The six methods against the pipeline's own functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model_sections import AUTOENCODER_KL, saved, section
from vaeline.core.estimators import BATCH, per_image_noise
from vaeline.core.model import decoded, interpolate
from vaeline.evaluation.split_metrics import bound
from vaeline.serving.inference import TrainedModel

SHAPE = (1, 8, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, *SHAPE), dtype=np.uint8)
LATENTS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
NETWORKS: list[dict[str, Any]] = [
    {"kind": "mlp", "hidden": [6]},
    {"kind": "conv", "channels": [3, 4], "hidden": 6},
    {"kind": "gated", "hidden": [6]},
    AUTOENCODER_KL | {"block_out_channels": [2, 4, 4]},
]
CALLS: dict[str, Callable[[TrainedModel, Any], Any]] = {  # the given array: pixels, or latents for decode
    "encode": lambda model, given: model.encode(given),
    "decode": lambda model, given: model.decode(given),
    "reconstruct": lambda model, given: model.reconstruct(given),
    "score": lambda model, given: model.score(given, seed=3),
    "interpolate": lambda model, given: model.interpolate(given[:2], steps=4),
}


def trained(folder: Path, objective: str = "elbo", **changes: Any) -> TrainedModel:
    return TrainedModel(saved(folder, section(**{"latent_dim": 4, "network": NETWORKS[0]} | changes), SHAPE, objective))


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return trained(tmp_path)


def given(method: str) -> np.ndarray:
    return LATENTS if method == "decode" else PIXELS


@pytest.mark.parametrize(
    "change",
    [*({"network": network} for network in NETWORKS), {"prior": {"kind": "vamp", "components": 3}}],
    ids=["mlp", "conv", "gated", "kl", "vamp"],
)
def test_each_method_is_the_pipelines_own_function(tmp_path: Path, change: dict[str, Any]):
    model = trained(tmp_path, **change)
    vae = model.loaded.vae
    x, z = vae.likelihood.observe(torch.from_numpy(PIXELS), None), torch.from_numpy(LATENTS)
    assert np.array_equal(model.encode(PIXELS), vae.encode(x).mean)
    assert np.array_equal(model.decode(LATENTS), decoded(vae, z))
    assert np.array_equal(model.reconstruct(PIXELS), decoded(vae, vae.encode(x).mean))
    between = model.interpolate(PIXELS[:2], 5)
    np.testing.assert_allclose(between, interpolate(vae, x[:2], 5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.score(PIXELS, seed=3), bound(vae, PIXELS, 3).elbo, rtol=1e-5)
    samples = model.sample(6, seed=2)
    assert np.array_equal(samples, decoded(vae, vae.prior.sample(per_image_noise(2, range(6), (4,)))))
    assert not np.allclose(samples, model.sample(6, seed=1))


@pytest.mark.parametrize("method", CALLS)
def test_numpy_and_torch_of_any_dtype_are_answered_alike_and_in_kind(model: TrainedModel, method: str):
    array = np.round(LATENTS).clip(0) if method == "decode" else PIXELS
    expected = CALLS[method](model, array)
    assert isinstance(expected, np.ndarray)
    assert expected.dtype == np.float32
    for dtype in (torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32, torch.float64):
        answer = CALLS[method](model, torch.from_numpy(array).to(dtype))
        assert torch.equal(answer, torch.from_numpy(expected))
    (answer.requires_grad_() * 2).sum().backward()  # an ordinary tensor, that others may compute with


@pytest.mark.parametrize("method", ["encode", "decode", "reconstruct", "score"])
def test_an_images_answer_depends_neither_on_the_batch_nor_on_its_size(model: TrainedModel, method: str):
    array = given(method)
    many = np.resize(array, (2 * BATCH + 3, *array.shape[1:]))
    many.flags.writeable = False
    whole = CALLS[method](model, many)
    assert len(whole) == len(many)
    assert len(CALLS[method](model, many[:0])) == 0
    np.testing.assert_allclose(whole[:3], CALLS[method](model, array[:3]), rtol=1e-5, atol=1e-5)
    if method != "score":  # whose noise goes by an image's place
        np.testing.assert_allclose(whole[len(array) :][: len(array)], whole[: len(array)], rtol=1e-5, atol=1e-5)


def test_memory_is_bounded_and_the_noise_is_another_in_each_batch(model: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    """Mistake 17: the same noise in every batch. Nine copies of one image in batches of four."""
    copies, sizes, encode = np.repeat(PIXELS[:1], 9, axis=0), [], model.loaded.vae.encode
    whole = model.score(copies, seed=3)
    assert len(np.unique(whole)) == 9
    monkeypatch.setattr("vaeline.core.estimators.PIXELS_AT_ONCE", 64 * 4)
    monkeypatch.setattr(model.loaded.vae, "encode", lambda x: (sizes.append(len(x)), encode(x))[1])
    np.testing.assert_allclose(model.score(copies, seed=3), whole, rtol=1e-5)
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.encode(PIXELS[:, :, 1:]), r"pixels: found shape \[7, 1, 7, 8\], allowed: \[N, 1, 8, 8\]"),
        (lambda m: m.encode(torch.from_numpy(PIXELS) + 0.5), "pixels: found other values than whole numbers"),
        (lambda m: m.encode(PIXELS.astype(int) + 256), "pixels: found other values"),
        (lambda m: m.encode(PIXELS.astype(int) - 256), "pixels: found other values"),
        (lambda m: m.encode(np.full(PIXELS.shape, np.nan)), "pixels: found other values"),
        (lambda m: m.decode(np.zeros((2, 3))), r"latents: found shape \[2, 3\], allowed: \[N, 4\]"),
        (lambda m: m.decode(torch.full((2, 4), torch.nan)), "latents: found values that are not finite"),
        (lambda m: m.decode(np.full((2, 4), 1e300)), "latents: found values that are not finite"),
        (lambda m: m.score(PIXELS, seed=-1), "seed: found -1"),
        (lambda m: m.sample(0), "n: found 0, allowed: 1 to 100000"),
        (lambda m: m.sample(3, seed=2**63), "seed: found 9223372036854775808"),
        (lambda m: m.interpolate(PIXELS, 3), "interpolate: found 7 images and 3 steps"),
        (lambda m: m.interpolate(PIXELS[:2], 1), "interpolate: found 2 images and 1 steps"),
    ],
)
def test_unreadable_input_is_reported_in_one_line(model: TrainedModel, call: Callable[[TrainedModel], Any], words: str):
    with pytest.raises(ValueError, match=words) as raised:
        call(model)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(PIXELS).to(torch.complex64),
        np.array("a"),
        PIXELS > 127,
        (PIXELS > 127).astype(object),  # as MLflow's server makes it of true and false
        PIXELS.astype(str).astype(object),
        np.array([1j], object),
        np.array([10**30], object),
        torch.from_numpy(PIXELS > 127),
        np.ma.masked_array(PIXELS, PIXELS > 9),
        torch.from_numpy(PIXELS).to_sparse(),
        torch.from_numpy(PIXELS).to("meta"),
        [[1, 2], [3]],
        None,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_array_of_real_numbers_is_refused(model: TrainedModel, given: Any):
    with pytest.raises(ValueError, match=r"^input: found something else than an array of real numbers$"):
        model.encode(given)


def test_a_model_of_binary_images_refuses_grey_ones_and_an_autoencoder_has_no_score(tmp_path: Path):
    binary = trained(tmp_path / "binary", likelihood={"kind": "bernoulli"})
    assert np.isfinite(binary.score(np.where(PIXELS > 127, 255, 0))).all()
    with pytest.raises(ValueError, match="takes binary images"):
        binary.reconstruct(PIXELS)
    plain = trained(tmp_path / "plain", objective="autoencoder")
    assert plain.reconstruct(PIXELS).shape == PIXELS.shape
    with pytest.raises(ValueError, match="plain autoencoder"):
        plain.score(PIXELS)


@pytest.mark.parametrize("home", ["cpu", "cuda"])
@pytest.mark.parametrize("method", CALLS)
def test_on_a_gpu_it_computes_there_and_answers_where_the_input_is(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch, method: str, home: str
):
    """Fake tensors have a device, and refuse to be mixed, without one. They have no values to be checked."""
    monkeypatch.setattr(TrainedModel, "_pixels", lambda self, values: values.to(torch.uint8))
    monkeypatch.setattr(TrainedModel, "_latents", lambda self, values: values.float())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.loaded.vae.to_empty(device="cuda")
        answer = CALLS[method](model, torch.empty(given(method).shape, device=home))
        assert answer.device.type == home


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "continuous-bernoulli", "discretised-logistic"])
def test_pixels_that_are_no_8_bit_ones_are_refused_by_every_likelihood_and_whole_floats_are_not(tmp_path, kind: str):
    model, pixels = trained(tmp_path, likelihood={"kind": kind}), np.where(PIXELS > 127, 255, 0)
    for method in ("encode", "reconstruct", "score"):
        call = CALLS[method]
        np.testing.assert_array_equal(call(model, pixels.astype(np.float32)), call(model, pixels.astype(np.uint8)))
        for wrong in (pixels / 510, pixels / 127.5 - 1, pixels * 257, pixels + 0.5, np.where(pixels, np.inf, 0)):
            with pytest.raises(ValueError, match="pixels: found other values than whole numbers from 0 to 255"):
                call(model, wrong)
