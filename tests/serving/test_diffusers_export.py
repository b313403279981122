"""A trained first stage as diffusers loads it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from typer.testing import CliRunner

from model_sections import AUTOENCODER_KL, LIKELIHOODS, MLP, saved, section
from vaeline.command.main import app
from vaeline.core.autoencoder_kl import to_diffusers
from vaeline.errors import UserError
from vaeline.serving import diffusers_export
from vaeline.serving.diffusers_export import export_diffusers
from vaeline.serving.inference import TrainedModel
from vaeline.serving.mlflow_package import required
from vaeline.serving.model_files import LoadedModel


def first_stage(
    folder: Path, network: dict[str, Any] = AUTOENCODER_KL, objective: str = "elbo", **more: Any
) -> LoadedModel:
    model = section(network, latent_dim=12, **more)
    return saved(folder, model, (3, 8, 6), objective, scale_factor=2.5, shift_factor=-0.25)


@pytest.mark.parametrize("likelihood", [LIKELIHOODS[1], LIKELIHOODS[4]], ids=["dequantised", "discrete"])
@pytest.mark.parametrize("attention", [True, False])
def test_diffusers_encodes_and_decodes_as_vaeline_does(tmp_path: Path, likelihood: dict[str, Any], attention: bool):
    """Mistake 13."""
    network = AUTOENCODER_KL | {"mid_block_add_attention": attention}
    loaded = first_stage(tmp_path / "model", network, likelihood=likelihood)
    assert max(export_diffusers(loaded, tmp_path / "out")) <= 1e-5
    theirs = AutoencoderKL.from_pretrained(tmp_path / "out")
    assert (theirs.config.scaling_factor, theirs.config.shift_factor) == (2.5, -0.25)
    pixels = np.random.default_rng(5).integers(0, 256, (3, 3, 8, 6), dtype=np.uint8)
    ours, (pixels[0], pixels[1]) = TrainedModel(loaded), (0, 255)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(pixels) / 127.5 - 1).latent_dist
        pictures = theirs.decode(posterior.mean).sample / 2 + 0.5
    latents = ours.encode(pixels)
    log_variance = loaded.vae.encode(loaded.vae.likelihood.observe(torch.from_numpy(pixels), None)).log_variance
    np.testing.assert_allclose(posterior.mean.flatten(1), latents, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar.flatten(1), log_variance, rtol=1e-5, atol=1e-5)
    if likelihood["kind"] == "gaussian":  # whose expected pixels are its output on [0, 1]
        np.testing.assert_allclose(pictures.clamp(0, 1), ours.decode(latents), rtol=1e-5, atol=1e-5)


def test_the_export_has_the_same_bytes_again_and_names_the_model(tmp_path: Path):
    loaded, digests = first_stage(tmp_path / "model"), set()
    for name in ("one", "two"):
        export_diffusers(loaded, tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        assert [path.name for path in files] == ["config.json", "diffusion_pytorch_model.safetensors"]
        digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    assert len(digests) == 1
    assert json.loads((tmp_path / "one" / "config.json").read_text())["_vaeline_model_digest"] == loaded.digest


@pytest.mark.parametrize(
    ("network", "objective", "line"),
    [
        (MLP, "elbo", r"^model.network.kind: found 'mlp'; allowed for diffusers: 'autoencoder-kl', trained as a VAE$"),
        (AUTOENCODER_KL, "autoencoder", "^objective: 'autoencoder'; allowed"),
    ],
)
def test_a_model_that_diffusers_does_not_have_is_refused(tmp_path: Path, network: Any, objective: str, line: str):
    with pytest.raises(UserError, match=line):
        export_diffusers(first_stage(tmp_path, network, objective), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_of_it_requires_diffusers(tmp_path: Path):
    plain, more = (required(first_stage(tmp_path, network)) for network in (MLP, AUTOENCODER_KL))
    assert [pin.partition("==")[0] for pin in more if pin not in plain] == ["diffusers"]


@pytest.mark.parametrize(("scale", "change"), [(2.0, 1 + 1e-5), (20.0, 1 + 1e-5), (1.0, torch.nan)])
def test_rounding_that_grows_with_the_weights_is_no_difference_and_a_changed_weight_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, change: float
):
    loaded = first_stage(tmp_path / "model")
    with torch.no_grad():
        for parameter in loaded.vae.parameters():
            parameter.mul_(scale)
    assert max(export_diffusers(loaded, tmp_path / "out")) < 1e-12
    assert all(parameter.dtype == torch.float32 for parameter in loaded.vae.parameters())

    def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = to_diffusers(state)
        return weights | {"post_quant_conv.bias": weights["post_quant_conv.bias"] * change}

    monkeypatch.setattr(diffusers_export, "to_diffusers", changed)
    with pytest.raises(UserError, match=r"no: diffusers differs by .*; allowed: 1e-09; nothing written$"):
        export_diffusers(loaded, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_command_line_takes_the_format(tmp_path: Path):
    first_stage(tmp_path / "model")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "diffusers"])
    assert (done.exit_code, done.output.count("\n")) == (0, 1), done.output
    assert "decoder within " in done.output
    assert CliRunner().invoke(app, ["export", "x", "y", "--format", "gguf"]).exit_code == 2
