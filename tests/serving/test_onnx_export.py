"""ONNX graphs against torch, as a consumer without torch runs them."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_sections import FITTED, LIKELIHOODS, MIXTURE, NETWORKS, SHAPE, saved, section
from vaeline.core.model import decoded
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.serving import onnx_export
from vaeline.serving.model_files import LoadedModel
from vaeline.serving.onnx_export import ABOUT, DECODER, ENCODER, PRIOR, TOLERANCE, export_onnx

OBJECTIVES = ("elbo", "autoencoder")
COUNTS = (1, 2, 7, 33)
CONSUMER = """
import json, sys
import numpy, onnxruntime
folder = sys.argv[1]
about = json.load(open(f"{folder}/model.json"))
encoder, decoder = (onnxruntime.InferenceSession(f"{folder}/{about[part]['file']}") for part in ("encoder", "decoder"))
shape = about["encoder"]["inputs"]["pixels"]["shape"][1:]
pixels = numpy.random.default_rng(0).integers(0, 256, (5, *shape), dtype=numpy.uint8)
mean, log_variance = encoder.run(None, {"pixels": pixels})
images, = decoder.run(["pixels"], {"z": mean})
numpy.savez(f"{folder}.npz", pixels=pixels, mean=mean, log_variance=log_variance, images=images)
assert not {"torch", "vaeline"} & set(sys.modules)
"""


def trained(
    folder: Path, network: str, likelihood: dict[str, Any], objective: str = "elbo", **more: Any
) -> LoadedModel:
    """A tiny model whose large weights saturate units."""
    shape, latent_dim = ((3, 8, 6), 12) if network == "kl" else (SHAPE, 3)
    model = section(NETWORKS[network], likelihood, latent_dim=latent_dim, **more)
    return saved(folder, model, shape, objective, gain=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(loaded: LoadedModel, folder: Path, tolerance: float) -> None:
    """Both graphs give torch's numbers for several batch sizes."""
    import onnxruntime

    vae, encoder, decoder = loaded.vae, *(onnxruntime.InferenceSession(folder / name) for name in (ENCODER, DECODER))
    for count in COUNTS:
        pixels = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, *vae.shape), dtype=np.uint8))
        if vae.likelihood.measure == "binary":
            pixels = torch.where(pixels > 127, 255, 0).to(torch.uint8)
        posterior = vae.encode(vae.likelihood.observe(pixels, None))
        mean, log_variance = encoder.run(["mean", "log_variance"], {"pixels": pixels.numpy()})
        np.testing.assert_allclose(mean, posterior.mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(log_variance, posterior.log_variance, rtol=tolerance, atol=tolerance)
        (expected,) = decoder.run(["pixels"], {"z": mean})
        np.testing.assert_allclose(expected, decoded(vae, torch.from_numpy(mean)), rtol=tolerance, atol=tolerance)
        assert expected.shape == pixels.shape
    if vae.likelihood.measure == "binary":
        mean, _ = encoder.run(None, {"pixels": np.full((1, *vae.shape), 7, np.uint8)})
        assert np.isnan(mean).all(), "grey pixels are as little a number as in torch"


@pytest.mark.parametrize(
    ("network", "likelihood", "objective"),
    [
        ("mlp", LIKELIHOODS[0], "elbo"),
        ("conv", LIKELIHOODS[1], "autoencoder"),
        ("gated", LIKELIHOODS[3], "elbo"),
        ("kl", LIKELIHOODS[4], "elbo"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in product(NETWORKS, LIKELIHOODS, OBJECTIVES)
            if each[0] != "kl" or "bernoulli" not in each[1]["kind"]
        ),
    ],
    ids=str,
)
def test_every_network_and_likelihood_comes_out_as_torch_has_it(
    tmp_path: Path, network: str, likelihood: dict[str, Any], objective: str, capfd: pytest.CaptureFixture[str]
):
    loaded = trained(tmp_path / "model", network, likelihood, objective)
    tolerance = 1e-4 if network == "kl" else TOLERANCE  # its attention makes that of float32's rounding
    assert max(export_onnx(loaded, tmp_path / "onnx")) <= tolerance
    assert capfd.readouterr() == ("", ""), "the exporter's messages are suppressed"
    check(loaded, tmp_path / "onnx", tolerance)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return trained(tmp_path_factory.mktemp("model"), "mlp", LIKELIHOODS[2])


@pytest.fixture(scope="module")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(loaded, folder)
    return folder


def test_a_consumer_with_onnxruntime_and_numpy_needs_nothing_else(loaded: LoadedModel, exported: Path):
    subprocess.run([sys.executable, "-I", "-c", CONSUMER, str(exported)], check=True, cwd=exported.parent)
    answers = np.load(f"{exported}.npz")
    posterior = loaded.vae.encode(loaded.vae.likelihood.observe(torch.from_numpy(answers["pixels"]), None))
    np.testing.assert_allclose(answers["mean"], posterior.mean, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(answers["images"], decoded(loaded.vae, posterior.mean), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("prior", "objective"),
    [({"kind": "standard-normal"}, "elbo"), (MIXTURE, "elbo"), (FITTED, "elbo"), (FITTED, "autoencoder")],
    ids=str,
)
def test_the_prior_is_a_mixture_of_gaussians_to_draw_from(tmp_path: Path, prior: dict[str, Any], objective: str):
    loaded = trained(tmp_path / "model", "mlp", LIKELIHOODS[0], objective, prior=prior)
    export_onnx(loaded, tmp_path)
    about, found = json.loads((tmp_path / ABOUT).read_text())["prior"], np.load(tmp_path / PRIOR)
    assert (about["file"], about["sha256"]) == (PRIOR, file_digest(tmp_path / PRIOR))
    rng = np.random.default_rng(0)
    k, noise = rng.choice(len(found["weights"]), 4000, p=found["weights"].astype(float)), rng.normal(size=(4000, 3))
    root = found["root"][k]
    z = found["mean"][k] + (root * noise if root.ndim == 2 else np.einsum("nij,nj->ni", root, noise))
    drawn = loaded.vae.prior.sample(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))).numpy()
    assert z.mean(0) == pytest.approx(drawn.mean(0), abs=0.1)
    assert np.cov(z.T) == pytest.approx(np.cov(drawn.T), abs=0.2)


def test_a_plain_autoencoder_has_no_prior_and_that_of_an_earlier_export_goes(tmp_path: Path):
    (tmp_path / PRIOR).write_text("of an earlier export")
    export_onnx(trained(tmp_path / "model", "mlp", LIKELIHOODS[1], "autoencoder"), tmp_path)
    assert json.loads((tmp_path / ABOUT).read_text())["prior"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"model", ENCODER, DECODER, ABOUT}


def test_the_files_name_the_model_and_each_other_and_no_path_of_this_machine(loaded: LoadedModel, exported: Path):
    import onnx

    about = json.loads((exported / ABOUT).read_text())
    assert about["model_digest"] == loaded.digest
    assert about["preprocessing"]["formula"] == "x = (pixels + 1/2) / 256"
    assert about["likelihood"] == {"kind": "gaussian", "sigma": pytest.approx(0.1)}
    for part in ("encoder", "decoder"):
        path = exported / about[part]["file"]
        assert about[part]["sha256"] == file_digest(path)
        content = path.read_bytes()
        graph = onnx.load_from_string(content)
        onnx.checker.check_model(graph, full_check=True)
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", about["opset"])]
        assert {entry.key: entry.value for entry in graph.metadata_props}["vaeline.model_digest"] == loaded.digest
        assert about[part]["inputs"].keys() == {entry.name for entry in graph.graph.input}
        assert about[part]["outputs"].keys() == {entry.name for entry in graph.graph.output}
        assert b"/" + Path(__file__).parts[1].encode() + b"/" not in content
        assert b".py" not in content


def test_the_same_model_gives_the_same_bytes_and_other_files_stay(exported: Path, tmp_path: Path):
    (tmp_path / ENCODER).write_text("of an older export")
    (tmp_path / "holiday.jpg").write_text("x")
    export_onnx(trained(tmp_path.parent / f"{tmp_path.name}-model", "mlp", LIKELIHOODS[2]), tmp_path)
    assert contents(tmp_path) == contents(exported) | {"holiday.jpg": b"x"}


def test_a_graph_unlike_torch_is_not_written(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ENCODER).write_text("old")
    monkeypatch.setattr(onnx_export, "MOST", -1.0)
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"encoder.onnx: differs from torch by .*nothing was written"):
        export_onnx(loaded, tmp_path)
    assert contents(tmp_path) == {ENCODER: b"old"}
