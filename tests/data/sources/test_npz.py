import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vaeline.data.sources.npz import read_npz
from vaeline.errors import UserError

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


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_npz(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "allowed: " in message and "\n" not in message
    return message


def test_grey_colour_and_wider_integers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    images = read_npz(save(path, images=GREY.astype(np.int32), labels=np.arange(5, dtype=np.int8)))
    np.testing.assert_array_equal(images.pixels, GREY[:, None])
    assert images.pixels.dtype == np.uint8 and images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    colour = np.stack([GREY, GREY + 1, GREY + 2], axis=3)
    images = read_npz(save(path, images=colour))
    np.testing.assert_array_equal(images.pixels[:, 1], GREY + 1)
    assert images.labels is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": GREY / 255}, "images is of type float64; allowed: images of type uint8"),
        ({"images": changed((4, 0, 2), -1)}, "images[4, 0, 2] is -1"),
        ({"images": changed((1, 2, 0), 256)}, "images[1, 2, 0] is 256"),
        ({"images": GREY > 3}, "images is of type bool"),
        ({"images": GREY[0]}, "images has shape (3, 4); allowed: images of type uint8"),
        ({"images": GREY[None, None]}, "images has shape (1, 1, 5, 3, 4)"),
        ({"images": GREY[..., None].repeat(2, 3)}, "images has shape (5, 3, 4, 2)"),
        ({"images": GREY[:0]}, "images has shape (0, 3, 4)"),
        ({"images": np.zeros((2, 5000, 4), np.uint8)}, "images has shape (2, 5000, 4); allowed: 1 to 4096 pixels"),
        ({"images": GREY.astype(object)}, "Object arrays cannot be loaded when allow_pickle=False"),
        ({"images": GREY, "labels": np.array([{}] * 5)}, "Object arrays cannot be loaded"),
        ({"images": GREY, "labels": np.arange(4)}, "labels has shape (4,); allowed: (5,)"),
        ({"images": GREY, "labels": np.arange(5.0)}, "labels is of type float64; allowed: labels of an integer type"),
        ({"images": GREY, "labels": np.array([0, 1, -2, 3, 4])}, "labels[2] is -2"),
        ({"x_train": GREY, "y": np.arange(5)}, "holds x_train, y; allowed: images and, if wanted, labels"),
        ({"images": GREY, "weights": GREY}, "holds images, weights; allowed: images and, if wanted, labels"),
    ],
)
def test_bad_arrays_are_refused_with_array_and_index(tmp_path: Path, arrays: dict[str, object], says: str) -> None:
    assert says in refusal(save(tmp_path / "d.npz", **arrays))


def test_a_pickle_inside_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('unpickled')",)

    path = save(tmp_path / "d.npz", images=np.array([Bomb()], dtype=object))
    assert "Object arrays cannot be loaded" in refusal(path)


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", images=GREY)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert "is not a complete .npz file" in refusal(path)
    at = whole.index(GREY.tobytes())
    path.write_bytes(whole[:at] + b"!" + whole[at + 1 :])
    assert "is not a complete .npz file: Bad CRC-32" in refusal(path)
    path.write_bytes(npy_bytes(GREY))
    assert "is not a complete .npz file" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"not an array")
    assert "images is of type |S12" in refusal(path)


def test_a_header_claiming_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    true, false = b"(5, 3, 4), }", b"(9999999999999, 3, 4), }"
    content = npy_bytes(GREY).replace(true + b" " * (len(false) - len(true)), false)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
    assert "Unable to allocate" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy_bytes(GREY)[:-1])
    assert "EOF: reading array data, expected 60 bytes got 59" in refusal(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.npz: cannot be read: No such file"):
        read_npz(tmp_path / "no.npz")
