"""`vaeline score` on files: what is read, written and printed."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_sections import saved, section
from vaeline.data.prepared import centre
from vaeline.data.sources.images import read_folder
from vaeline.errors import UserError
from vaeline.evaluation.drift import REFERENCE_SEED, Verdict
from vaeline.serving.inference import TrainedModel
from vaeline.serving.scoring import score_images

SHAPE = (1, 8, 6)  # C, H, W


def noise(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def trained(
    folder: Path, likelihood: str = "gaussian", objective: str = "elbo", shape: tuple[int, int, int] = SHAPE
) -> TrainedModel:
    """A model to which noise is familiar."""
    loaded = TrainedModel(saved(folder, section(likelihood={"kind": likelihood}), shape, objective))
    if objective == "autoencoder" or likelihood == "bernoulli":
        return replace(loaded, reference=np.arange(10.0))
    return replace(loaded, reference=loaded.score(noise(300, seed=1, shape=shape), REFERENCE_SEED).astype(np.float64))


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return trained(tmp_path / "model")


def score(model: TrainedModel, images: Path, fit: str = "", seed: int = 0, **more: str) -> tuple[Verdict, list[str]]:
    """The verdict and the printed lines; the table is `scores.csv` beside the images."""
    lines: list[str] = []
    out = images.parent / "scores.csv"
    changes = {"fit": fit, **more} if fit else {}
    return score_images(model, "models:/m@champion", images, out, 0.01, seed, changes, lines.append), lines


def write_images(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)).save(folder / f"{index:03}.png")
    return folder


def column(folder: Path, name: str) -> list[Any]:
    with (folder / "scores.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_a_folder_is_scored_image_by_image_and_looks_alike(model: TrainedModel, tmp_path: Path):
    pixels = noise(60, seed=2)
    verdict, lines = score(model, write_images(tmp_path / "new", pixels), seed=5)
    assert not verdict.drift
    assert column(tmp_path, "image") == [f"{index:03}.png" for index in range(60)]
    expected = model.score(pixels, 5)
    np.testing.assert_allclose(np.float64(column(tmp_path, "elbo")), expected, rtol=1e-5)
    assert model.reference is not None
    below = (model.reference[:, None] < expected).mean(0)
    np.testing.assert_allclose(np.float64(column(tmp_path, "quantile")), below, atol=1e-5)
    assert lines[0] == "images        60, compared with 300 test images of the model"
    assert lines[1].startswith(f"median ELBO   {np.median(expected):.2f} nats, ")
    assert lines[-1] == "no drift: the images look like the test data (level 0.01)"


def test_other_images_are_drift(model: TrainedModel, tmp_path: Path):
    np.savez(tmp_path / "new.npz", images=noise(60, seed=2)[:, 0] // 4)
    verdict, lines = score(model, tmp_path / "new.npz")
    assert verdict.drift
    assert lines[-1] == "drift: the images do not look like the test data (level 0.01)"
    assert column(tmp_path, "image") == [str(index) for index in range(60)]


def test_fit_resizes_and_converts_class_folders_as_preparing_the_data_does(tmp_path: Path):
    model, folder = trained(tmp_path / "model", shape=(1, 8, 8)), tmp_path / "new"
    for name in ("a", "b"):
        write_images(folder / name, noise(2, ord(name), (4, 20, 30)))
    for background in ("black", "white"):
        score(model, folder, fit="crop", background=background)
        assert column(tmp_path, "image") == ["a/000.png", "a/001.png", "b/000.png", "b/001.png"]
        prepared = read_folder(folder, size=8, mode="L", background=background)[0].pixels
        np.testing.assert_allclose(np.float64(column(tmp_path, "elbo")), model.score(prepared, 0), rtol=1e-5)


def test_fit_crops_what_preparing_the_data_cropped(model: TrainedModel, tmp_path: Path):
    data = model.loaded.config.data.model_copy(update={"uncropped": (16, 16)})
    loaded = replace(model.loaded, config=model.loaded.config.model_copy(update={"data": data}))
    folder = write_images(tmp_path / "new", noise(2, 1, (3, 20, 30)))
    score(replace(model, loaded=loaded), folder, fit="crop")
    prepared = centre(read_folder(folder, size=16, mode="L")[0].pixels, SHAPE)
    np.testing.assert_allclose(np.float64(column(tmp_path, "elbo")), model.score(prepared, 0), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 8, 6)])
def test_images_of_another_kind_are_one_line(model: TrainedModel, tmp_path: Path, shape: tuple[int, int, int]):
    pixels, kind = noise(2, 1, shape), {1: "8 x 6 pixels in L", 3: "6 x 8 pixels in RGB"}[shape[0]]
    line = rf"its images are {kind}; the model's: 6 x 8 pixels in L"
    with pytest.raises(UserError, match=rf"{line} \(--fit crop makes them so\)$"):
        score(model, folder := write_images(tmp_path / "new", pixels))
    score(model, folder, fit="crop")
    (tmp_path / "scores.csv").unlink()
    np.savez(tmp_path / "new.npz", images=np.moveaxis(pixels, 1, 3))
    with pytest.raises(UserError, match=rf"new.npz: {line}$"):
        score(model, tmp_path / "new.npz")
    assert not (tmp_path / "scores.csv").exists()


def test_what_cannot_be_scored_is_reported_in_one_line(model: TrainedModel, tmp_path: Path):
    (tmp_path / "rgba").mkdir()
    Image.new("RGBA", (6, 8)).save(tmp_path / "rgba" / "a.png")
    black_white = np.where(noise(3, 1) > 127, 255, 0).astype(np.uint8)
    fine, binary = write_images(tmp_path / "fine", black_white), trained(tmp_path / "binary", "bernoulli")
    score(binary, fine)
    black_white[2, 0, 0, 0] = 7
    grey, plain = write_images(tmp_path / "grey", black_white), trained(tmp_path / "plain", objective="autoencoder")
    for scored, images, fit, line in (
        (model, tmp_path / "rgba", "", r"RGBA with transparency; allowed: L or RGB, or --fit crop to convert"),
        (model, write_images(tmp_path / "dim", black_white // 9), "", "dim: the largest value of all images is 28"),
        (model, tmp_path / "nowhere", "", "nowhere: does not exist; allowed: a folder of PNG or JPEG images, or an"),
        (binary, grey, "", "image 002.png has grey pixels; the model takes black and white"),
        (plain, fine, "", "models:/m@champion: is a plain autoencoder"),
        (replace(model, reference=None), fine, "", "has no ELBOs of test images with it, so there is no verdict"),
    ):
        with pytest.raises(UserError, match=line):
            score(scored, images, fit)
    assert column(tmp_path, "quantile") == ["", "", ""], "without a reference the scores are written"
