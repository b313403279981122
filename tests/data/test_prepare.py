import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import idx_bytes, pin
from vaeline.config.data import Crop, Data, Download, Npz, Shapes
from vaeline.data.fetch import fetch
from vaeline.data.prepare import binarise, moments, prepare
from vaeline.data.prepared import SPLITS, DataManifest, load_split, load_whole, manifest_digest, open_split
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

Section = Callable[..., Data]


def npz_section(section: Section, folder: Path, images: np.ndarray, **changes: object) -> Data:
    """Section `data` of an .npz source whose file already lies in folder/raw."""
    (folder / "data/raw").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data/raw" / "data.npz", images=images, labels=(images[:, 0, 0] > 127) + 10**10)
    return section(Npz(kind="npz", path="data.npz"), **changes)


def prepared(data: Data, folder: Path, name: str = "out") -> DataManifest:
    return prepare(data, folder / "data/raw", folder / name)


def distinct_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 4), np.uint8)


def test_the_splits_hold_every_image_once_with_its_label(tmp_path: Path, section: Section) -> None:
    images = distinct_images(20)
    manifest = prepared(npz_section(section, tmp_path, images, test=0.2), tmp_path)
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    assert (manifest.shape, manifest.source, manifest.classes) == ((1, 5, 4), "npz", ["10000000000", "10000000001"])
    seen = []
    for name in SPLITS:
        part = open_split(tmp_path / "out", name)
        assert part.labels is not None and isinstance(part.pixels, np.memmap) and part.pixels.flags.c_contiguous
        np.testing.assert_array_equal(part.labels, part.pixels[:, 0, 0, 0] > 127)
        seen += [image.tobytes() for image in part.pixels]
        assert part.factors is None
        unit = part.pixels.astype(np.float64) / 255
        assert manifest.splits[name].mean == pytest.approx(unit.mean(), rel=1e-12)
        assert manifest.splits[name].std == pytest.approx(unit.std(), rel=1e-12)
    assert sorted(seen) == sorted(image.tobytes() for image in images)
    assert moments(np.bincount([255] * 9, minlength=256)) == (1.0, 0.0)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(tmp_path: Path, section: Section) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        prepared(npz_section(section, tmp_path, distinct_images(20), seed=seed), tmp_path, name)
    first, second, third = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "three")
    )
    assert first == second
    assert first["train.npy"] != third["train.npy"]
    assert manifest_digest(tmp_path / "one") == manifest_digest(tmp_path / "two") != manifest_digest(tmp_path / "three")


def test_duplicates_across_splits_are_dropped_and_counted_and_test_wins(tmp_path: Path, section: Section) -> None:
    images = distinct_images(30)
    images[15:] = images[:15]  # every image twice
    manifest = prepared(npz_section(section, tmp_path, images, validation=8), tmp_path)
    parts = {name: load_split(tmp_path / "out", name) for name in SPLITS}
    groups = {name: {image.tobytes() for image in pixels} for name, pixels in parts.items()}
    assert not (groups["test"] & groups["validation"] or groups["train"] & (groups["test"] | groups["validation"]))
    assert groups["test"] | groups["validation"] | groups["train"] == {image.tobytes() for image in images}
    assert len(parts["test"]) == 8
    assert manifest.duplicates_dropped == 30 - sum(map(len, parts.values())) > 0


def test_training_images_in_the_official_test_split_are_dropped(
    tmp_path: Path, section: Section, tiny_set: dict[str, bytes], monkeypatch
) -> None:
    """Mistake 11."""
    images = distinct_images(40)
    images[3] = images[31]
    files = tiny_set | {
        "train-images-idx3-ubyte": idx_bytes(images[:30]),
        "t10k-images-idx3-ubyte": idx_bytes(images[30:]),
    }
    pin(monkeypatch, "mnist", files)
    (tmp_path / "data/raw").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "data/raw" / name).write_bytes(content)
    manifest = prepared(section(Download(kind="mnist")), tmp_path)
    np.testing.assert_array_equal(load_split(tmp_path / "out", "test")[:, 0], images[30:])
    assert manifest.duplicates_dropped == 1
    assert sum(split.count for split in manifest.splits.values()) == 39


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (
            np.full((20, 5, 4), 99, np.uint8),
            None,
            "validation: 0 images once duplicates are dropped; allowed: at least 4",
        ),
        (distinct_images(11), None, "train: 3 images once duplicates are dropped; allowed: at least 4 distinct ones"),
        *[
            (
                distinct_images(20) % (most + 1),
                None,
                rf"data\.source\.path: data.npz: the largest value of all images is {most}; "
                "allowed: 8-bit pixels, 0 to 255, at least one of 32 or more: multiply all of them by 255 / ",
            )
            for most in (1, 16, 31)
        ],
        (distinct_images(20)[:, :1, :1], None, "data: images of 1 x 1 pixels; allowed: at least 4 a side"),
        (distinct_images(20), np.arange(20), "data: 20 classes for 20 images; allowed: two images a class and "),
    ],
)
def test_less_than_later_stages_need_is_refused(*, tmp_path: Path, section: Section, images, labels, words) -> None:
    data = npz_section(section, tmp_path, images)
    if labels is not None:
        np.savez(tmp_path / "data/raw/data.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=f"^{words}"):
        prepared(data, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mode", "grey"), [("none", set(SPLITS)), ("static", set()), ("dynamic", {"train"})])
def test_binarisation_leaves_grey_only_what_it_should(tmp_path: Path, section: Section, mode: str, grey: set) -> None:
    fetch(Download(kind="digits"), Workspace(tmp_path))
    manifest = prepared(section(Download(kind="digits"), binarise=mode, validation=300), tmp_path)
    assert manifest.binarise == mode
    for name in SPLITS:
        values = set(np.unique(load_split(tmp_path / "out", name)).tolist())
        assert (values == {0, 255}) == (name not in grey), name
        assert manifest.splits[name].mean == pytest.approx(0.305, abs=0.02)


def test_mistake_15_each_split_and_each_block_of_one_draw_their_own_noise(tmp_path, section, monkeypatch) -> None:
    monkeypatch.setattr("vaeline.data.prepare.BLOCK", 10 * 20)  # ten images
    images = np.full((90, 5, 4), 128, np.uint8)
    images[:, 0, :3] = distinct_images(90)[:, 0, :3]
    prepared(npz_section(section, tmp_path, images, binarise="static", validation=30), tmp_path)
    drawn = [load_split(tmp_path / "out", name)[:, 0, 1:] for name in SPLITS]
    for first, second in combinations(drawn, 2):
        assert (first == second).mean() == pytest.approx(0.5, abs=0.1)
    blocks = np.concatenate(drawn).reshape(9, 160)
    assert len(np.unique(blocks, axis=0)) == 9
    assert (blocks[:-1] == blocks[1:]).mean() == pytest.approx(0.5, abs=0.1)


def test_manifest_and_summary_describe_what_lies_beside_them_and_the_first_images_are_shown(tmp_path, section) -> None:
    source = Shapes(kind="shapes", count=40, size=80)
    fetch(source, Workspace(tmp_path))
    prepare(section(source), tmp_path / "data/raw", tmp_path / "out", tmp_path / "summary")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    keys = ["binarise", "classes", "duplicates_dropped", "format", "shape", "source", "splits"]
    assert (list(manifest), manifest["format"], manifest["shape"]) == (keys, 1, [3, 80, 80])
    assert manifest["classes"] == (names := ["square", "ellipse", "triangle"])
    summary = json.loads((tmp_path / "summary" / "summary.json").read_text())
    for name in SPLITS:
        part = open_split(tmp_path / "out", name)
        assert part.factors is not None and part.factors.shape == (len(part), 6)
        np.testing.assert_array_equal(part.factors[:, 0], part.labels)
        counts = [int((part.labels == label).sum()) for label in range(3)]
        assert summary[name]["classes"] == [[*pair] for pair in zip(names, counts, strict=True)]
        assert summary[name]["images"] == len(part)
        for channel, pixels in zip(summary[name]["channels"], part.pixels.swapaxes(0, 1), strict=True):
            assert (channel["lowest"], channel["highest"]) == (pixels.min(), pixels.max())
            assert (channel["mean"], channel["std"]) == pytest.approx((pixels.mean() / 255, pixels.std() / 255))
    sheet = np.asarray(Image.open(tmp_path / "summary" / "images.png"))
    assert sheet.shape == (2 * 42, 16 * 42, 3)  # 32 images of 80 pixels, every second one shown, and the gaps
    train = load_split(tmp_path / "out", "train")
    np.testing.assert_array_equal(sheet[42:82, 42:82], train[17, :, ::2, ::2].transpose(1, 2, 0))


def test_a_pixel_is_white_with_the_probability_of_its_grey() -> None:
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(4000, 1)
    drawn = binarise(grey, np.random.default_rng(0))
    assert set(np.unique(drawn).tolist()) == {0, 255}
    frequency, expected = (drawn == 255).mean(1), np.arange(256) / 255
    assert (frequency[0], frequency[255]) == (0, 1)
    deviation = np.sqrt(np.maximum(expected * (1 - expected), 1e-9) / 4000)
    assert np.abs((frequency - expected) / deviation)[1:255].max() < 4


def test_preparing_again_replaces_the_whole_folder(tmp_path: Path, section: Section) -> None:
    for left in ("out/stale.npy", ".out.new/half.npy"):  # the second by a killed process
        (tmp_path / left).parent.mkdir()
        (tmp_path / left).write_bytes(b"old")
    prepared(npz_section(section, tmp_path, distinct_images(20)), tmp_path)
    assert not list(tmp_path.rglob("stale.npy")) and not list(tmp_path.rglob("half.npy"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_images_that_a_crop_makes_the_same_are_in_one_split(tmp_path: Path, section: Section):
    images = np.random.default_rng(1).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    images[50:, 2:6, 2:6] = images[:50, 2:6, 2:6]  # other margins
    crop = Crop(kind="centre", size=4)
    data = npz_section(section, tmp_path, images, validation=20, test=20, crop=crop)
    assert prepared(data, tmp_path).duplicates_dropped > 0
    found = {name: {i.tobytes() for i in open_split(tmp_path / "out", name).pixels} for name in ("train", "test")}
    assert not found["train"] & found["test"]


def test_crops_are_the_middle_and_for_random_ones_the_training_images_stay_whole_in_the_file(
    tmp_path: Path, section: Section
):
    images = np.random.default_rng(1).integers(0, 256, (20, 6, 9), dtype=np.uint8)
    middle = {image[1:5, 2:6].tobytes(): image for image in images}
    for kind in ("centre", "random"):
        data = npz_section(section, tmp_path, images, test=0.2, crop=Crop(kind=kind, size=4))
        assert prepared(data, tmp_path, kind).shape == (1, 4, 4)
        for name in ("train", "validation", "test"):
            assert all(part.tobytes() in middle for part in load_split(tmp_path / kind, name))
    parts, whole = load_split(tmp_path / "random", "train"), load_whole(tmp_path / "random", "train")
    np.testing.assert_array_equal(whole[:, 0], [middle[part.tobytes()] for part in parts])
    assert load_whole(tmp_path / "centre", "train").shape == load_split(tmp_path / "centre", "train").shape
    with pytest.raises(UserError, match=r"^data.crop.size: found 7; allowed: at most 6 pixels here$"):
        prepared(npz_section(section, tmp_path, images, crop=Crop(kind="centre", size=7)), tmp_path)
