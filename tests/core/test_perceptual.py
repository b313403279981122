"""LPIPS against torchvision's VGG-16, what its file must hold, and a training with it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_training import bumps, model, options, same_weights, train_small
from vaeline.config.train import INIT_PERCEPTUAL, Diffusers, Perceptual, Random
from vaeline.core import perceptual
from vaeline.core.model import decoded
from vaeline.data.fetch import fetch_init
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.training.build import build_model
from vaeline.training.initial import load_perceptual
from vaeline.training.splits import Splits
from vaeline.training.step import Batch, losses

LAST = (64, 128, 256, 512, 512)
TINY = ((4, 4), (4, 4), (6,), (6,), (8,))


def section(path: Path, weight: float = 1.0) -> Perceptual:
    return Perceptual(weight=weight, kind="vgg16", weights=str(path))


def tiny_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of a network of few channels."""
    monkeypatch.setattr(perceptual, "STAGES", TINY)
    torch.manual_seed(3)
    tensors = perceptual.Perceptual(1.0).features.state_dict()
    save_file({f"features.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


def test_it_is_the_distance_in_torchvisions_features(tmp_path: Path):
    from torchvision.models.vgg import cfgs, make_layers
    from torchvision.transforms.functional import normalize

    torch.manual_seed(1)
    layers = make_layers(cfgs["D"])[:30]  # without the last pooling
    lins = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(LAST)}
    features = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    more = {"classifier.0.weight": torch.ones(3)}  # a whole state_dict has it
    x, y = torch.rand(2, 2, 3, 18, 20)
    for tensors in (features | more, features | lins):
        save_file(tensors, tmp_path / "vgg.safetensors")
        ours = load_perceptual(section(tmp_path / "vgg.safetensors"), (3, 18, 20))
        expected = torch.zeros(2)
        h, g = (normalize(images, perceptual.MEAN, perceptual.SPREAD) for images in (x, y))
        with torch.no_grad():
            for number, layer in enumerate(layers):
                h, g = layer(h), layer(g)
                if number in (3, 8, 15, 22, 29):
                    stage = (3, 8, 15, 22, 29).index(number)
                    weight = tensors.get(f"lin{stage}.model.1.weight", torch.ones(1))
                    u, v = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (h, g))
                    expected += ((u - v).square() * weight).sum(1).mean((1, 2))
            torch.testing.assert_close(ours(x, y), expected, rtol=1e-4, atol=1e-5)
            assert ours(x, x).abs().max() == 0


def test_it_is_added_to_the_loss_and_to_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, data = tiny_file(tmp_path / "vgg.safetensors", monkeypatch), Splits(bumps(40, 1, 16), bumps(9, 2, 16), "none")
    vae = build_model(model(), (1, 16, 16), "elbo", 1)
    item = Batch(torch.from_numpy(bumps(5, 3, 16)).float(), None, torch.randn(5, 3))
    distance = load_perceptual(section(path, 300.0), (1, 16, 16))
    x = vae.likelihood.observe(item.pixels, None)
    expected = 300 * distance(x, decoded(vae, vae.encode(x).rsample(item.normal))).mean()
    plain, more = (losses(vae, item, torch.tensor(1.0), 0.0, perceptual=each) for each in (None, distance))
    torch.testing.assert_close(more[0] - plain[0], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(more[1], plain[1])
    results = [
        train_small(tmp_path / str(wanted), options(perceptual=wanted, epochs=1), data, model_section=model())
        for wanted in (None, section(path, 300.0))
    ]
    assert not same_weights(*results)
    (row,) = results[1].history
    assert row.train_elbo == row.train_reconstruction - row.train_kl


def test_what_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, here = tiny_file(tmp_path / "vgg.safetensors", monkeypatch), Workspace(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"^train.perceptual: found 1 x 8 x 8; allowed: images of 1 or 3"):
        load_perceptual(section(path), (1, 8, 8))
    with pytest.raises(UserError, match="null"):
        fetch_init(Diffusers(kind="diffusers", path="a\0b"), None, here)
    with pytest.raises(UserError, match=r"no.safetensors: cannot be read: .*; safetensors.torch.save_file\(torch"):
        fetch_init(Random(kind="random"), section(tmp_path / "no.safetensors"), here)
    with pytest.raises(UserError, match=r"^/proc/self/environ: is not a safetensors file; safetensors.torch.save_file"):
        fetch_init(Random(kind="random"), section(Path("/proc/self/environ")), here)
    fetch_init(Random(kind="random"), section(path), here)
    assert (here.init / INIT_PERCEPTUAL).read_bytes() == path.read_bytes()
    whole = load_file(path)
    load_perceptual(section(path), (1, 16, 16))
    save_file(whole | {"features.30.weight": torch.ones(2), "net.features.0.bias": torch.ones(1)}, path)
    load_perceptual(section(path), (1, 16, 16))  # what is not read does not matter
    not_finite = whole | {"features.0.bias": torch.full((4,), torch.nan)}
    for tensors, line in (
        ({"features.0.weight": torch.zeros(1)}, "does not fit vgg16: missing tensors "),
        (whole | {"lin0.model.1.weight": torch.ones(1, 4, 1, 1)}, "missing tensors .*lin1.model.1.weight"),
        (not_finite, "tensor features.0.bias: holds values that are not finite"),
    ):
        save_file(tensors, path)
        with pytest.raises(UserError, match=line):
            load_perceptual(section(path), (1, 16, 16))
