import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_files import refusal
from vaeline.data.sources.npz import read_npz

GREY = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed(where: tuple[int, ...], value: float) -> np.ndarray:
    array = GREY.astype(int)
    array[where] = value
    return array


def test_grey_colour_and_wider_integers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    dataset = read_npz(save(path, images=GREY.astype(np.int32), labels=np.arange(5, dtype=np.int8)))
    np.testing.assert_array_equal(dataset.pool.pixels, GREY[:, None])
    assert (dataset.pool.pixels.dtype, dataset.pool.labels.tolist()) == (np.uint8, [0, 1, 2, 3, 4])
    assert dataset.classes is None
    dataset = read_npz(save(path, images=np.stack([GREY, GREY + 1, GREY + 2], axis=3)))
    np.testing.assert_array_equal(dataset.pool.pixels[:, 1], GREY + 1)
    assert dataset.pool.labels is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([7, 7, -2, 10**10, 7]), ("-2", "7", "10000000000")),
        (np.array([2**63, 2**63, 0, 2**64 - 1, 2**63], np.uint64), ("0", str(2**63), str(2**64 - 1))),
        (np.array(["b", "b", "<a>", "c", "b"]), ("<a>", "b", "c")),
        (np.array([b"c", b"c", b"b", b"\xff", b"c"]), ("b", "c", "\\xff")),
        (np.array([0.5, 0.5, -1e300, 2, 0.5]), ("-1e+300", "0.5", "2.0")),
    ],
)
def test_labels_of_any_size_and_names_become_class_numbers(tmp_path: Path, labels: np.ndarray, classes: tuple) -> None:
    dataset = read_npz(save(tmp_path / "d.npz", images=GREY, labels=labels))
    assert (dataset.pool.labels.dtype, dataset.pool.labels.tolist()) == (np.int64, [1, 1, 0, 2, 1])
    assert dataset.classes == classes


class Bomb:
    """What ends the tests where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


COLOUR = GREY[..., None].repeat(3, 3)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY / 255, GREY),
        ((GREY / 127.5 - 1).astype(np.float32), GREY),
        (GREY.astype(np.float16), GREY),
        (GREY > 3, np.where(GREY > 3, 255, 0)),
        (GREY.astype(np.uint16) * 1000, np.round(GREY * 1000.0 / 257)),
        (GREY.astype(np.uint16), GREY),
        (GREY.astype(np.int8) - 99, GREY + 29),
        (GREY.astype(np.int64) * 60, np.round(GREY * 60.0 * 255 / 4095)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (COLOUR.transpose(1, 2, 3, 0), COLOUR),
        (COLOUR.transpose(0, 3, 1, 2) / 255, COLOUR),
        (GREY[:, :, :3].transpose(1, 2, 0), GREY[:, :, :3]),
    ],
)
def test_the_expression_in_a_refusal_makes_images_that_are_read(tmp_path: Path, images, expected) -> None:
    path = save(tmp_path / "d.npz", images=images)
    line = refusal(read_npz, path).replace(", or images[..., None] if it is 3 images", "")
    for expression in line.rpartition(" channels: ")[2].split(", then "):
        images = eval(expression, {"images": images})
    pixels = read_npz(save(path, images=images)).pool.pixels
    np.testing.assert_array_equal(pixels[:, 0] if expected.ndim == 3 else np.moveaxis(pixels, 1, 3), expected)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.full((5, 3, 4), np.nan)}, "images is of type float64; allowed: 8-bit pixels"),
        ({"images": changed((4, 0, 2), -1)}, "images[4, 0, 2] is -1"),
        ({"images": changed((1, 2, 0), 256)}, "images[1, 2, 0] is 256"),
        ({"images": GREY[None, None]}, "images has shape (1, 1, 5, 3, 4)"),
        ({"images": GREY[:0]}, "images has shape (0, 3, 4)"),
        ({"images": GREY[:0] / 255}, "images has shape (0, 3, 4)"),
        ({"images": GREY[:, :0]}, "images has shape (5, 0, 4); allowed: 1 to 4096 pixels"),
        ({"images": np.zeros((2, 5000, 4), np.uint8)}, "images has shape (2, 5000, 4); allowed: 1 to 4096 pixels"),
        (
            {"images": np.zeros((5, 8, 8, 4), np.uint8)},
            "(5, 8, 8, 4); allowed: 8-bit pixels (uint8, 0 to 255), N x H x W, "
            "or N x H x W x C with 1 or 3 channels: composite the alpha channel on a background, then drop it",
        ),
        ({"images": np.array([Bomb()])}, "images.npy holds Python objects, which are never read; allowed: numbers"),
        (
            {"images": GREY, "labels": np.array([*"abcde"], object)},
            "labels.npy holds Python objects, which are never read",
        ),
        ({"images": GREY, "labels": np.arange(4)}, "labels has shape (4,); allowed: (5,)"),
        (
            {"images": GREY, "labels": np.array([0, 1, np.nan, 1, 0])},
            "labels is of type float64, or not finite; allowed",
        ),
        (
            {"images": GREY, "labels": np.arange(5) * 1j},
            "labels is of type complex128, or not finite; allowed: labels ",
        ),
        ({"x_train": GREY, "y\x1b[31m": GREY}, "holds 'x_train, y\\x1b[31m'; allowed: images and, if wanted, labels"),
        ({"images": GREY} | {f"array{i}": 0 for i in range(99)}, "...; allowed: images and, if wanted, labels"),
    ],
)
def test_bad_arrays_are_refused_with_array_and_index(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    assert words in refusal(read_npz, save(tmp_path / "d.npz", **arrays))


def test_truncated_damaged_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", images=GREY)
    whole = path.read_bytes()
    at = whole.index(GREY.tobytes())
    for content, words in (
        (whole[:-30], "File is not a zip file"),
        (whole[:at] + b"!" + whole[at + 1 :], "Bad CRC-32"),
        (npy_bytes(GREY), "File is not a zip file"),
    ):
        path.write_bytes(content)
        assert f"is not a complete .npz file: {words}" in refusal(read_npz, path)
    path.write_bytes(b"#!/bin/sh\n" + whole)  # as self-extracting archives begin
    np.testing.assert_array_equal(read_npz(path).pool.pixels[:, 0], GREY)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images", npy_bytes(GREY[:2]))
    assert "cannot be read: holds an array twice; allowed: images" in refusal(read_npz, path)
    path.unlink()
    assert "cannot be read: No such file" in refusal(read_npz, path)


def claiming(shape: bytes) -> bytes:
    true, false = b"(5, 3, 4), }", shape + b", }"
    return npy_bytes(GREY).replace(true + b" " * (len(false) - len(true)), false)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (claiming(b"(99999, 859, 800)"), "images.npy claims shape (99999, 859, 800) of uint8 in 188 bytes"),  # 64 GiB
        (claiming(b"(9999999999999, 3, 4)"), "images.npy claims shape"),
        (npy_bytes(GREY)[:-1], "claims shape (5, 3, 4) of uint8 in 187 bytes"),
        (b"not an array", "the magic string is not correct"),
    ],
)
def test_a_header_claiming_more_than_the_file_holds_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", content)
    assert words in refusal(read_npz, tmp_path / "d.npz")


def test_what_unpacks_to_more_than_half_the_memory_is_refused_unread(tmp_path: Path, monkeypatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=np.zeros((5000, 64, 64), np.uint8))
    sizes = {"SC_PHYS_PAGES": 4000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert "would unpack to 20,480,128 bytes; allowed: at most 8,192,000" in refusal(read_npz, tmp_path / "d.npz")
