from pathlib import Path

import numpy as np
import pytest

from data_files import packed, pin, tar_gz, write_packed
from vaeline.config.data import Download, Folder, Npz, Shapes
from vaeline.data.fetch import fetch
from vaeline.data.sources.images import scan
from vaeline.data.sources.readers import read_cifar10, read_source, read_svhn
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

RNG = np.random.default_rng(0)
BATCHES = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
RECORDS = {
    name: RNG.integers(0, 10, (3, 3073), dtype=np.uint8) for name in [*BATCHES, "cifar-10-batches-bin/test_batch.bin"]
}
CIFAR = {name: records.tobytes() for name, records in RECORDS.items()}


def test_cifar10_s_records_are_a_label_and_three_planes(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(tar_gz({"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"} | CIFAR))
    pool, test = read_cifar10(path)
    assert pool.pixels.shape == (15, 3, 32, 32) and test.pixels.shape == (3, 3, 32, 32)
    assert pool.labels is not None
    second = RECORDS[BATCHES[0]][1]
    assert pool.labels[1] == second[0]
    np.testing.assert_array_equal(pool.pixels[1, 2].ravel(), second[1 + 2048 :])  # the blue plane
    np.testing.assert_array_equal(test.pixels[0].ravel(), RECORDS["cifar-10-batches-bin/test_batch.bin"][0, 1:])


def test_svhn_s_ten_is_the_digit_zero(tmp_path: Path) -> None:
    from scipy.io import savemat

    pixels = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "t.mat", {"X": pixels, "y": np.array([[10], [1], [9], [2]], np.uint8)}, do_compression=True)
    images = read_svhn(tmp_path / "t.mat")
    assert images.labels is not None and images.labels.tolist() == [0, 1, 9, 2]
    np.testing.assert_array_equal(images.pixels[2, 1], pixels[:, :, 1, 2])


def test_a_public_set_keeps_its_own_test_split_and_raw_bytes_that_changed_are_refused(
    tmp_path: Path, tiny_set: dict[str, bytes]
) -> None:
    for name, content in tiny_set.items():
        (tmp_path / name).write_bytes(content)
    dataset = read_source(Download(kind="fashion-mnist"), tmp_path)
    assert dataset.pool.pixels.shape == (30, 1, 4, 5)
    assert dataset.test is not None and dataset.test.pixels.tobytes() == tiny_set["t10k-images-idx3-ubyte"][16:]
    assert (
        dataset.test.labels is not None
        and bytes(dataset.test.labels.tolist()) == tiny_set["t10k-labels-idx1-ubyte"][8:]
    )
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x09\x09")
    for damage, found in ((lambda: None, "[0-9a-f]{64}"), (labels.unlink, "missing")):
        damage()
        with pytest.raises(
            UserError, match=f"{labels.name}: SHA-256 is {found}; allowed: .*; run the stage fetch again"
        ):
            read_source(Download(kind="fashion-mnist"), tmp_path)
    with pytest.raises(UserError, match="no: is missing; run the stage fetch first"):
        read_source(Download(kind="digits"), tmp_path / "no")


def test_a_packed_public_set_is_read_too(tmp_path: Path, tiny_set: dict[str, bytes], monkeypatch) -> None:
    pin(monkeypatch, "kmnist", {f"{name}.gz": packed(content) for name, content in tiny_set.items()})
    write_packed(tmp_path, tiny_set)
    dataset = read_source(Download(kind="kmnist"), tmp_path)
    assert dataset.pool.pixels.tobytes() == tiny_set["train-images-idx3-ubyte"][16:]
    assert dataset.classes == tuple("abcdefghij")


def test_digits_are_scikit_learn_s(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = Download(kind="digits")
    fetch(source, Workspace(tmp_path))
    dataset, known = read_source(source, tmp_path / "data/raw"), load_digits()
    np.testing.assert_array_equal(dataset.pool.pixels[:, 0], np.floor(known.images * 255 / 16 + 0.5))
    np.testing.assert_array_equal(dataset.pool.labels, known.target)


def test_shapes_carry_their_factors(tmp_path: Path) -> None:
    source = Shapes(kind="shapes", count=12, size=16, seed=3)
    fetch(source, Workspace(tmp_path))
    dataset = read_source(source, tmp_path / "data/raw")
    assert dataset.pool.pixels.shape == (12, 3, 16, 16)
    assert dataset.pool.factors is not None and dataset.pool.factors.shape == (12, 6)
    assert dataset.classes == ("square", "ellipse", "triangle")
    with pytest.raises(UserError, match=r"images\.npy: is not what data\.source asks for; run the stage fetch again"):
        read_source(Shapes(kind="shapes", count=13, size=16, seed=3), tmp_path / "data/raw")
    (tmp_path / "data/raw" / "factors.npy").write_bytes(b"?")
    with pytest.raises(UserError, match=r"raw: is damaged"):
        read_source(source, tmp_path / "data/raw")


def test_a_source_that_is_missing_or_within_the_output_is_refused_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path, tmp_path)
    (tmp_path / "link").symlink_to("data/raw")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.png").touch()
    monkeypatch.setattr("vaeline.data.fetch.scan", lambda folder: (None, [*scan(folder)[1], (folder / "gone.png", 0)]))
    workspace.raw.mkdir(parents=True)
    (workspace.raw / "kept").write_text("before")
    for source, says in (
        (Npz(kind="npz", path="no.npz"), r"data\.source\.path: .*no\.npz: is not a file; allowed:"),
        (Npz(kind="npz", path="/proc/self/environ"), r"data\.source\.path: /proc/self/environ: is not a complete .npz"),
        (Folder(kind="folder", path="no"), r"data\.source\.path: .*no: is not a folder; allowed:"),
        (Folder(kind="folder", path="mine"), r".*/mine/gone\.png: cannot be read: No such file"),
        *[
            (Folder(kind="folder", path=path), rf"data\.source\.path: {path} overlaps .*/data/raw, which fetch writes")
            for path in ("data/raw", "data", "link", "mine/../data/raw")
        ],
    ):
        with pytest.raises(UserError, match=says):
            fetch(source, workspace)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]
    assert (workspace.raw / "kept").read_text() == "before"


def test_a_relative_path_is_found_from_dvc_s_copies_of_the_repository(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 4, 4), np.uint8))
    fetch(Npz(kind="npz", path="mine.npz"), Workspace(tmp_path / "copy", tmp_path))
    assert (tmp_path / "copy/data/raw/data.npz").read_bytes() == (tmp_path / "mine.npz").read_bytes()
