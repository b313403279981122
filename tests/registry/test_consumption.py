"""A registered model in its consumers' hands: its reference, drift, ONNX, the examples, `mlflow models serve`."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import vaeline
from model_sections import AUTOENCODER_KL, section
from pipeline.services.servers import free_port
from pipeline.stages import register as stage
from registry_fixture import ROOT, entered
from vaeline.command import main as consume
from vaeline.errors import UserError
from vaeline.evaluation.drift import REFERENCE_SEED
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import load_model
from vaeline.serving.onnx_export import ABOUT, DECODER, ENCODER, PRIOR

NAME = "vaeline-fashion-mnist"
CHAMPION = f"models:/{NAME}@champion"
SHAPE = (1, 5, 4)
EXAMPLES = ROOT / "examples"
FIRST_STAGE = section(AUTOENCODER_KL | {"block_out_channels": [4]}).model_copy(update={"latent_dim": 20})  # f = 1


@pytest.fixture(scope="module")
def registered(
    registered_once: Path, outputs: Callable[..., Path], empty_store: Path, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A repository with a registered model, as working folder; the tests here only read it."""
    other = getattr(request, "param", {})
    root = outputs(**other) if other else registered_once
    with entered(root, empty_store if other else None) as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/.vaeline/mlflow.db")
        if other:
            stage.main()
        yield root


def noise(count: int, seed: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (count, *SHAPE), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    np.savez(path, images=pixels[:, 0])
    return path


def score(images: Path, out: Path, **changes: Any) -> int:
    """The command, by its exit code."""
    options = {"model": "", "level": 0.01, "seed": 0, "fit": False} | changes
    try:
        consume.score(images, out=out, **options)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def test_the_elbos_of_test_images_travel_with_the_model_and_leave_its_digest_alone(registered: Path):
    model, own = vaeline.load(CHAMPION), TrainedModel(load_model(registered / "models"))
    test = np.load(registered / "data" / "prepared" / "test.npy")
    assert model.reference is not None
    np.testing.assert_array_equal(model.reference, own.score(test, REFERENCE_SEED))
    assert model.digest == own.digest
    assert own.reference is None


def test_score_ends_with_zero_for_images_like_the_test_data_and_with_three_for_others(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert score(save(tmp_path / "same.npz", noise(100, 1)), tmp_path / "same.csv") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no drift: ")
    assert score(save(tmp_path / "dark.npz", noise(100, 1, most=60)), tmp_path / "dark.csv", model=CHAMPION) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("drift: ")
    assert len((tmp_path / "dark.csv").read_text().splitlines()) == 101
    assert score(tmp_path / "dark.npz", tmp_path / "dark.csv", as_json=True) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["uri"], found["out"], found["drift"]) == (CHAMPION, str(tmp_path / "dark.csv"), True)


def test_score_is_wrong_with_one_line(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = save(tmp_path / "same.npz", noise(4, 1))
    for changes, words in (
        ({"level": 1.0}, r"--level: found 1.0, allowed: above 0 and below 1"),
        ({"model": "models"}, r"models: has no ELBOs of test images with it"),
        ({"model": f"models:/{NAME}@missing"}, r"missing"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            score(images, tmp_path / "scores.csv", **changes)
        assert len(str(raised.value).splitlines()) == 1
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="--model: is needed outside a repository"):
        score(images, tmp_path / "scores.csv")


def test_export_writes_what_the_champion_is(registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    consume.export(CHAMPION, tmp_path / "onnx")
    assert " of vaeline's own" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {ABOUT, ENCODER, DECODER, PRIOR}
    digest = load_model(registered / "models").digest
    assert json.loads((tmp_path / "onnx" / ABOUT).read_text())["model_digest"] == digest


def test_the_example_finds_images_unlike_the_others(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pixels = noise(50, 1)
    pixels[[7, 30]] = 0
    picture = tmp_path / "picture.png"
    find = runpy.run_path(str(EXAMPLES / "anomalies.py"))["find"]
    find(CHAMPION, save(tmp_path / "images.npz", pixels), 0.05, picture)
    lines = capsys.readouterr().out.splitlines()
    assert {int(line.split()[0]) for line in lines[2:4]} == {7, 30}
    assert lines[2].endswith("anomaly")
    with Image.open(picture) as image:
        assert not np.asarray(image)[19 : 19 * 6, 19 : 19 * 5].any(), "a black image comes first"


@pytest.mark.slow
@pytest.mark.parametrize("registered", [{}, {"section": FIRST_STAGE}], ids=["mlp", "autoencoder-kl"], indirect=True)
def test_mlflow_models_serve_answers_every_method_to_curl(registered: Path, tmp_path: Path):
    """The example as it stands, away from the repository's code: it serves, asks with curl, and stops the server."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PATH": path,
        "TMPDIR": str(tmp_path),
        "KEEP": "answers",
    }
    port = free_port(0)
    command = [str(EXAMPLES / "serve.sh"), CHAMPION, str(port)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    own = TrainedModel(load_model(registered / "models"))
    pixels = np.load(registered / "data" / "prepared" / "test.npy")[:2]
    latents = own.encode(pixels)
    expected = {
        "score": own.score(pixels),
        "encode": latents,
        "reconstruct": own.reconstruct(pixels),
        "decode": own.decode(latents),
        "sample": own.sample(2, seed=1),
    }
    for method, answer in expected.items():
        answered = json.loads((tmp_path / "answers" / method).read_text())["predictions"]
        np.testing.assert_allclose(answered, answer, rtol=1e-5, atol=1e-6)
        assert f"\n{method} " in f"\n{done.stdout}"
    assert free_port(port) == port, "nothing listens there any more"
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers"]
