from pathlib import Path
from typing import Any

import pytest
import torch

from data_files import refusal
from model_sections import AUTOENCODER_KL, GATED, LIKELIHOODS, NETWORKS, PRIORS, SHAPE, described, saved, section
from package_damage import Damage, edit, edit_json, remove
from vaeline import config
from vaeline.core.likelihoods import START_SIGMA
from vaeline.errors import UserError
from vaeline.io.digests import model_digest
from vaeline.serving.model_files import CONFIG, WEIGHTS, load_model, save_model
from vaeline.training.build import build_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    saved(tmp_path / "model", section())
    return tmp_path / "model"


@pytest.mark.parametrize("objective", ["elbo", "autoencoder"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("network", ["mlp", "conv", "gated"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, network: str, likelihood: dict[str, Any], objective: str):
    model = section(NETWORKS[network], likelihood)
    vae = build_model(model, SHAPE, objective, seed=1)
    save_model(tmp_path, vae, described(model, objective))
    loaded = load_model(tmp_path)
    assert (loaded.config.model, loaded.config.objective) == (model, objective)
    assert loaded.vae.shape == loaded.config.shape == SHAPE
    x, z = torch.rand(2, *SHAPE), torch.randn(2, 3)
    assert torch.equal(vae.encode(x).mean, loaded.vae.encode(x).mean)
    assert torch.equal(vae.encode(x).log_variance, loaded.vae.encode(x).log_variance)
    assert torch.equal(vae.decode(z), loaded.vae.decode(z))
    assert str(vae.likelihood.sigma) == str(loaded.vae.likelihood.sigma)
    assert not loaded.vae.training
    assert not any(p.requires_grad for p in loaded.vae.parameters())


@pytest.mark.parametrize(("sigma", "expected"), [(0.05, 0.05), (1.0, 1.0), ("learned", START_SIGMA)])
def test_mistake_7_sigma_is_what_the_params_say(sigma: float | str, expected: float) -> None:
    vae = build_model(section(likelihood={"kind": "gaussian", "sigma": sigma}), SHAPE, "elbo", seed=1)
    assert float(vae.likelihood.sigma) == pytest.approx(expected, rel=0.01)
    assert any(parameter is vae.likelihood.log_sigma for parameter in vae.parameters()) == (sigma == "learned")


def test_the_same_model_is_saved_as_the_same_bytes_and_another_weight_is_another_digest(tmp_path: Path, folder: Path):
    model, again, other = section(), tmp_path / "again", saved(tmp_path / "other", section(), gain=1.001)
    save_model(again, build_model(model, SHAPE, "elbo", seed=1), dict(reversed(described(model).items())))
    for name in (WEIGHTS, CONFIG):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert load_model(again).digest == load_model(folder).digest == model_digest(folder) != other.digest
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]  # no temporary file stays


def test_weights_follow_the_seed_alone_and_a_prior_draws_after_the_networks():
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    first, again, other = (build_model(section(), SHAPE, "elbo", seed=seed).state_dict() for seed in (1, 1, 2))
    with_prior = build_model(section(prior=PRIORS["vamp"]), SHAPE, "elbo", seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first for same in (again, with_prior))
    assert not torch.equal(first["encoder.2.weight"], other["encoder.2.weight"])


def test_a_description_that_describes_nothing_is_refused_before_anything_is_written(tmp_path: Path):
    vae, broken = build_model(section(), SHAPE, "elbo", seed=1), described(section()) | {"objective": "gan"}
    with pytest.raises(UserError, match=r"config\.json: objective: .*gan"):
        save_model(tmp_path / "model", vae, broken)
    assert not (tmp_path / "model").exists()


BROKEN: dict[str, tuple[str, str, Damage]] = {  # more in package_damage.py
    "no config": (CONFIG, "cannot be read", remove(CONFIG)),
    "torn config": (CONFIG, "is not JSON", edit(CONFIG, lambda old: old[:-20])),
    "torn weights": (WEIGHTS, "is not a safetensors file", edit(WEIGHTS, lambda old: old[:-20])),
    "format": (CONFIG, "format", edit_json(CONFIG, lambda c: c.update(format=2))),
    "no format": (CONFIG, "format: missing", edit_json(CONFIG, lambda c: c.pop("format"))),
    "unknown key": (CONFIG, "extra: unknown key", edit_json(CONFIG, lambda c: c.update(extra=1))),
    "unknown key inside": (
        CONFIG,
        "model.network.depth",
        edit_json(CONFIG, lambda c: c["model"]["network"].update(depth=1)),
    ),
    "two sides": (CONFIG, "shape", edit_json(CONFIG, lambda c: c.update(shape=[1, 9]))),
    "no height": (CONFIG, "shape", edit_json(CONFIG, lambda c: c.update(shape=[1, 0, 7]))),
    "text for a side": (CONFIG, "shape", edit_json(CONFIG, lambda c: c.update(shape=[1, "9", 7]))),
    "another shape": (WEIGHTS, "tensor ", edit_json(CONFIG, lambda c: c.update(shape=[1, 9, 8]))),
    "another objective": (WEIGHTS, "tensor ", edit_json(CONFIG, lambda c: c.update(objective="autoencoder"))),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_a_broken_model_is_refused_in_one_line_naming_the_file(folder: Path, case: str) -> None:
    file, words, damage = BROKEN[case]
    damage(folder)
    message = refusal(load_model, folder)
    assert message.startswith(str(folder / file))
    assert words in message
    assert "-S '~" not in message, "only a key of params.yaml can be removed by DVC"


@pytest.mark.parametrize("prior", PRIORS)
def test_a_learned_prior_is_saved_with_its_model(tmp_path: Path, prior: str):
    model = section(GATED, prior=PRIORS[prior])
    vae = build_model(model, SHAPE, "elbo", seed=1)
    save_model(tmp_path, vae, described(model))
    loaded, z = load_model(tmp_path).vae, torch.randn(5, 3)
    assert torch.equal(loaded.prior.log_prob(z), vae.prior.log_prob(z))
    assert torch.equal(loaded.prior.sample(z), vae.prior.sample(z))


def test_a_model_saved_before_there_were_priors_has_the_standard_normal(folder: Path):
    edit_json(CONFIG, lambda content: content["model"].pop("prior"))(folder)
    assert load_model(folder).config.model.prior.kind == "standard-normal"


def first_stage(latent_dim: int, channels: list[int]) -> config.Model:
    network = AUTOENCODER_KL | {"block_out_channels": channels, "latent_channels": 2}
    return section(network, latent_dim=latent_dim)


@pytest.mark.parametrize("objective", ["elbo", "autoencoder"])
def test_spatial_latents_are_saved_and_flattened(tmp_path: Path, objective: str) -> None:
    model, shape = first_stage(2 * 4 * 3, [4, 6, 6]), (3, 16, 12)
    vae = build_model(model, shape, objective, seed=1)
    save_model(tmp_path, vae, described(model, objective) | {"scale_factor": 0.25})
    assert load_model(tmp_path).config.scale_factor == 0.25
    loaded, x = load_model(tmp_path).vae, torch.rand(2, *shape)
    assert torch.equal(loaded.encode(x).mean, vae.encode(x).mean)
    assert vae.encode(x).mean.shape == (2, 24)
    assert vae.decode(torch.randn(5, 24)).shape == (5, *shape)
