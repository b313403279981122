"""Trainings that start from an AutoencoderKL as diffusers, or an export of ours, saves it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from data_files import refusal
from model_sections import AUTOENCODER_KL, described
from package_damage import Damage, edit, edit_json, put, remove, tensors
from small_training import Recorder, bumps, options, same_weights, train_small
from vaeline import config
from vaeline.config.train import INIT_CONFIG, INIT_WEIGHTS, Diffusers, Random
from vaeline.core.autoencoder_kl import recompute_activations
from vaeline.core.model import decoded
from vaeline.core.objectives import elbo_terms
from vaeline.data.fetch import fetch_init
from vaeline.errors import UserError
from vaeline.evaluation.split_metrics import mean_psnr, reconstruct
from vaeline.io.workspace import Workspace
from vaeline.serving.diffusers_export import export_diffusers
from vaeline.serving.model_files import load_model, save_model
from vaeline.training import checkpoint
from vaeline.training.build import build_model, kl_sizes
from vaeline.training.device import Settings
from vaeline.training.initial import load_initial

SHAPE = (1, 8, 8)
MODEL = config.Model.model_validate(
    {"latent_dim": 16, "network": AUTOENCODER_KL, "likelihood": {"kind": "gaussian", "sigma": 0.1}}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random AutoencoderKL, made and saved by diffusers itself."""
    torch.manual_seed(7)
    AutoencoderKL(**kl_sizes(MODEL.network).arguments(SHAPE)).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def begin(folder: Path, model: config.Model = MODEL, shape: tuple[int, int, int] = SHAPE) -> Any:
    vae = build_model(model, shape, "elbo", seed=1)
    load_initial(vae, model.network, folder)
    return vae


def tuned(path: Path, folder: Path, tracker: Any = None, settings: Any = None, **changes: Any) -> Any:
    own = {"init": {"kind": "diffusers", "path": str(folder)}, "epochs": 2, "learning_rate": 0.002}
    return train_small(path, options(**own | changes), model_section=MODEL, tracker=tracker, settings=settings)


def test_what_diffusers_saved_is_tuned_exported_and_loaded_again(folder: Path, tmp_path: Path):
    pixels = torch.from_numpy(bumps(5, 9))
    theirs, ours = AutoencoderKL.from_pretrained(folder), begin(folder)
    with torch.no_grad():
        found = theirs.encode(pixels / 127.5 - 1).latent_dist.mean.flatten(1)
        means = ours.encode(ours.likelihood.observe(pixels, None)).mean
        torch.testing.assert_close(means, found, rtol=1e-5, atol=1e-5)
    model = tuned(tmp_path / "c", folder).model
    save_model(tmp_path / "model", model, described(MODEL))
    export_diffusers(load_model(tmp_path / "model"), tmp_path / "out")
    again = begin(tmp_path / "out")
    with torch.no_grad():
        x = model.likelihood.observe(pixels, None)
        torch.testing.assert_close(again.encode(x).mean, model.encode(x).mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(decoded(again, means), decoded(model, means), rtol=1e-5, atol=1e-5)
        assert (model.encode(x).mean - means).abs().max() > 1e-3, "two epochs have moved it"


def test_only_the_decoder_is_tuned_and_its_pictures_become_better(folder: Path, tmp_path: Path):
    """Mistake 13."""
    before, result = begin(folder), tuned(tmp_path, folder, only="decoder")
    old, new = before.state_dict(), result.model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new if name.startswith("encoder."))
    assert not any(torch.equal(new[name], old[name]) for name in new if name.startswith("decoder.network."))
    first, last = (mean_psnr(reconstruct(vae, bumps(50, 77))[0]) for vae in (before, result.model))
    assert last > first + 2, "decibels, on images that it has not seen"
    kl = [row.train_kl for row in result.history]
    assert kl[0] > 0 and kl[1] == pytest.approx(kl[0], rel=1e-3), "it is reported, not trained"


def test_half_precision_and_the_attentions_former_names_are_read(folder: Path):
    tensors, expected = load_file(folder / INIT_WEIGHTS), begin(folder)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in former.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / INIT_WEIGHTS)
    for name, tensor in begin(folder).state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-3, atol=1e-4)


CONFIGS: dict[str, dict[str, Any]] = {
    "_class_name: found UNet2DModel, allowed: AutoencoderKL": {"_class_name": "UNet2DModel"},
    "_class_name: found None, allowed": {"_class_name": None},
    "latent_channels: found 4, model.network and the images want 1": {"latent_channels": 4},
    "in_channels: found 3, model.network and the images want 1": {"in_channels": 3},
    "use_quant_conv: found False, ": {"use_quant_conv": False},
}
BIAS = "encoder.conv_in.bias"
BROKEN: dict[str, Damage] = {
    **{line: edit_json(INIT_CONFIG, lambda c, new=new: c.update(new)) for line, new in CONFIGS.items()},
    "config.json: is not JSON": put(INIT_CONFIG, b"{"),
    f"missing tensors ['{BIAS}'], unknown []": tensors(lambda t: t.pop(BIAS), INIT_WEIGHTS),
    f"tensor {BIAS}: holds values that are not finite": tensors(lambda t: t[BIAS].fill_(torch.nan), INIT_WEIGHTS),
    f"tensor {BIAS}: found torch.float32 [2], config.json wants torch.float32 [4]": tensors(
        lambda t: t.update({BIAS: torch.zeros(2)}), INIT_WEIGHTS
    ),
    "is not a safetensors file: ": edit(INIT_WEIGHTS, lambda old: old[:-9]),
    "model.safetensors: cannot be read: No such file": remove(INIT_WEIGHTS),
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_folder_that_does_not_hold_it_is_refused_in_one_line(folder: Path, line: str):
    BROKEN[line](folder)
    message = refusal(begin, folder)
    assert line in message and message.startswith(f"{folder}/{INIT_CONFIG if line in CONFIGS else ''}")


def test_fetch_copies_the_two_files_and_never_reads_a_pickle(folder: Path, tmp_path: Path):
    here = Workspace(tmp_path, tmp_path)
    init = Diffusers(kind="diffusers", path="theirs")
    (folder / "more.txt").write_text("left out")
    fetch_init(init, None, here)
    for name in (INIT_CONFIG, INIT_WEIGHTS):
        assert (here.init / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in here.init.iterdir()) == [INIT_CONFIG, INIT_WEIGHTS, "init.json"]
    (folder / INIT_WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"^train.init.path: .*\.bin: is a pickle, which is never read; allowed: diff"):
        fetch_init(init, None, here)
    assert (here.init / INIT_WEIGHTS).exists(), "a refusal leaves what was there"
    with pytest.raises(UserError, match=r"no/config.json: cannot be read: No such file"):
        fetch_init(Diffusers(kind="diffusers", path="no"), None, here)
    fetch_init(Random(kind="random"), None, here)
    assert [path.name for path in here.init.iterdir()] == ["init.json"]


def bytes_kept(vae: Any) -> int:
    """By the forward pass, for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        elbo_terms(vae, torch.rand(2, *SHAPE), torch.randn(2, 16))
    return sum(sizes)


def test_recomputed_activations_change_no_bit_and_are_not_kept_nor_those_of_a_frozen_encoder(
    folder: Path, tmp_path: Path
):
    assert same_weights(tuned(tmp_path / "a", folder), tuned(tmp_path / "b", folder, recompute=True))
    plain, again, frozen = (begin(folder) for _ in range(3))
    recompute_activations(again)
    frozen.encoder.requires_grad_(False)
    assert bytes_kept(again) < bytes_kept(plain) / 3
    assert bytes_kept(frozen) < 0.65 * bytes_kept(plain)


def test_a_stopped_training_of_a_first_stage_goes_on_to_the_same_bits(folder: Path, tmp_path: Path):
    changes = {"flips": True, "recompute": True, "accumulate": 3, "only": "decoder", "batch_size": 32}

    class Stop(Recorder):
        def metrics(self, values: Mapping[str, float], step: int) -> None:
            if step == 3:
                raise RuntimeError

    settings = Settings(checkpoint_seconds=0, log_every=1)
    with pytest.raises(RuntimeError):
        tuned(tmp_path / "a", folder, tracker=Stop(), settings=settings, **changes)
    assert checkpoint.read(tmp_path / "a").progress["step"] == 2
    whole = tuned(tmp_path / "b", folder, **changes)
    resumed = tuned(tmp_path / "a", folder, settings=settings, **changes)
    assert same_weights(whole, resumed) and whole.history == resumed.history
