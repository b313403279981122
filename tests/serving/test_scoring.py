"""`vaeline score` on files: what is read, written and printed."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_sections import described, section
from vaeline.data.sources.images import read_folder
from vaeline.errors import UserError
from vaeline.evaluation.drift import REFERENCE_SEED, Verdict
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import load_model, save_model
from vaeline.serving.scoring import score_images
from vaeline.training.build import build_model

SHAPE = (1, 8, 6)  # C, H, W


def noise(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def trained(
    folder: Path, likelihood: str = "gaussian", objective: str = "elbo", shape: tuple[int, int, int] = SHAPE
) -> TrainedModel:
    """A model to which noise is familiar."""
    model = section(likelihood={"kind": likelihood})
    save_model(folder, build_model(model, shape, objective, seed=1), described(model, objective))
    loaded = TrainedModel(load_model(folder))
    if objective == "autoencoder" or likelihood == "bernoulli":
        return replace(loaded, reference=np.arange(10.0))
    return replace(loaded, reference=loaded.score(noise(300, seed=1, shape=shape), REFERENCE_SEED).astype(np.float64))


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return trained(tmp_path / "model")


@pytest.fixture
def lines() -> list[str]:
    return []


def run(model: TrainedModel, images: Path, lines: list[str], fit: bool = False, **changes: Any) -> Verdict:
    options = {"uri": "models:/m@champion", "out": images.parent / "scores.csv", "level": 0.01, "seed": 0}
    return score_images(model, images=images, fit=fit, print_line=lines.append, **options | changes)


def write_images(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)).save(folder / f"{index:03}.png")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_scored_image_by_image_and_looks_alike(model: TrainedModel, tmp_path: Path, lines: list[str]):
    pixels = noise(60, seed=2)
    verdict = run(model, write_images(tmp_path / "new", pixels), lines, seed=5)
    assert not verdict.drift
    table = rows(tmp_path / "scores.csv")
    assert [row["image"] for row in table] == [f"{index:03}.png" for index in range(60)]
    expected = model.score(pixels, 5)
    np.testing.assert_allclose([float(row["elbo"]) for row in table], expected, rtol=1e-5)
    assert model.reference is not None
    below = (model.reference[:, None] < expected).mean(0)
    np.testing.assert_allclose([float(row["quantile"]) for row in table], below, atol=1e-5)
    assert lines[0] == "images        60, compared with 300 test images of the model"
    assert lines[1].startswith(f"median ELBO   {np.median(expected):.2f} nats, ")
    assert lines[-1] == "no drift: the images look like the test data (level 0.01)"


def test_other_images_are_drift(model: TrainedModel, tmp_path: Path, lines: list[str]):
    path = tmp_path / "new.npz"
    np.savez(path, images=noise(60, seed=2)[:, 0] // 4)
    verdict = run(model, path, lines)
    assert verdict.drift
    assert lines[-1] == "drift: the images do not look like the test data (level 0.01)"
    assert [row["image"] for row in rows(tmp_path / "scores.csv")] == [str(index) for index in range(60)]


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 8, 6)])
def test_images_of_another_kind_are_reported_in_one_line(
    model: TrainedModel, tmp_path: Path, lines: list[str], shape: tuple[int, int, int]
):
    pixels, kind = noise(2, 1, shape), {1: "8 x 6 pixels in L", 3: "6 x 8 pixels in RGB"}[shape[0]]
    line = rf"its images are {kind}; the model's: 6 x 8 pixels in L"
    with pytest.raises(UserError, match=rf"{line} \(--fit makes them so\)$"):
        run(model, write_images(tmp_path / "new", pixels), lines)
    np.savez(tmp_path / "new.npz", images=np.moveaxis(pixels, 1, 3))
    with pytest.raises(UserError, match=rf"new.npz: {line}$"):
        run(model, tmp_path / "new.npz", lines)
    assert not (tmp_path / "scores.csv").exists()


def test_fit_resizes_and_converts_class_folders_as_preparing_the_data_does(tmp_path: Path, lines: list[str]):
    model, folder = trained(tmp_path / "model", shape=(1, 8, 8)), tmp_path / "new"
    folder.mkdir()
    for name in ("a", "b"):
        write_images(folder / name, noise(2, ord(name), (3, 20, 30)))
    run(model, folder, lines, fit=True)
    prepared = read_folder(folder, 8, "L")[0].pixels
    names = [row["image"] for row in rows(tmp_path / "scores.csv")]
    assert names == ["a/000.png", "a/001.png", "b/000.png", "b/001.png"]
    found = [float(row["elbo"]) for row in rows(tmp_path / "scores.csv")]
    np.testing.assert_allclose(found, model.score(prepared, 0), rtol=1e-5)


def test_grey_images_are_refused_by_a_model_of_black_and_white(tmp_path: Path, lines: list[str]):
    model = trained(tmp_path / "model", "bernoulli")
    pixels = np.where(noise(3, 1) > 127, 255, 0).astype(np.uint8)
    run(model, write_images(tmp_path / "fine", pixels), lines)
    pixels[2, 0, 0, 0] = 7
    with pytest.raises(UserError, match=r"image 002.png has grey pixels; the model takes black and white"):
        run(model, write_images(tmp_path / "grey", pixels), lines)


def test_without_a_reference_the_scores_are_written_but_no_verdict_is_given(
    model: TrainedModel, tmp_path: Path, lines: list[str]
):
    folder = write_images(tmp_path / "new", noise(3, 1))
    with pytest.raises(UserError, match="has no ELBOs of test images with it, so there is no verdict"):
        run(replace(model, reference=None), folder, lines)
    assert [row["quantile"] for row in rows(tmp_path / "scores.csv")] == ["", "", ""]
    assert lines == []


def test_what_cannot_be_scored_is_reported(model: TrainedModel, tmp_path: Path, lines: list[str]):
    (tmp_path / "rgba").mkdir()
    Image.new("RGBA", (6, 8)).save(tmp_path / "rgba" / "a.png")
    fine, autoencoder = (
        write_images(tmp_path / "new", noise(3, 1)),
        trained(tmp_path / "plain", objective="autoencoder"),
    )
    for scored, images, fit, line in (
        (model, tmp_path / "rgba", False, r"a.png: its mode is RGBA; allowed: L or RGB, or --fit to convert"),
        (model, fine, True, "--fit: makes square images; the model's: 6 x 8 pixels in L"),
        (model, tmp_path / "nowhere", False, "nowhere: does not exist; allowed: a folder of PNG or JPEG images, or an"),
        (autoencoder, fine, False, "models:/m@champion: is a plain autoencoder"),
    ):
        with pytest.raises(UserError, match=line):
            run(scored, images, lines, fit)
