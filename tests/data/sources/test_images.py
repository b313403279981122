import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaeline.data.sources.images import read_folder, read_image, scan
from vaeline.errors import UserError


def grey(side: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))


def colour(side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8))


def saved(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def refusal(read: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims any size."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    )  # fmt: skip


def test_pixels_come_out_as_channels_height_width(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))  # 3 wide, 2 high
    array = read_image(saved(tmp_path / "a.png", image))
    assert array.shape == (3, 2, 3)
    np.testing.assert_array_equal(array[1], np.asarray(image)[:, :, 1])
    images, classes = read_folder(tmp_path, None, None)  # without class folders there are no labels
    assert (images.pixels.shape, images.labels, classes) == ((1, 3, 2, 3), None, None)


def test_class_folders_become_labels_in_order_of_name(tmp_path: Path) -> None:
    for name, seed in (("dogs/1.png", 1), ("cats/b.png", 2), ("cats/a.PNG", 3)):
        saved(tmp_path / name, grey(seed=seed))
    (tmp_path / "cats" / ".DS_Store").write_bytes(b"?")
    images, classes = read_folder(tmp_path, None, None)
    assert classes == ("cats", "dogs")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 1]
    expected = [np.asarray(grey(seed=seed))[None] for seed in (3, 2, 1)]
    np.testing.assert_array_equal(images.pixels, expected)


@pytest.mark.parametrize(
    ("other", "found", "key", "arguments", "shape"),
    [(grey(9), "(1, 9, 9)", "size", (6, None), (2, 1, 6, 6)),
     (colour(), "(3, 8, 8)", "mode", (None, "RGB"), (2, 3, 8, 8))],
)  # fmt: skip
def test_mixed_sizes_and_modes_are_refused_by_name_unless_asked_to_be_changed(
    *, tmp_path: Path, other: Image.Image, found: str, key: str, arguments: tuple, shape: tuple[int, ...]
) -> None:
    first, second = saved(tmp_path / "a.png", grey()), saved(tmp_path / "b.png", other)
    message = refusal(read_folder, tmp_path, None, None)
    assert message.startswith(f"{second}: is {found} (channels, height, width), but {first} is (1, 8, 8); allowed:")
    assert f"data.source.{key}" in message
    assert read_folder(tmp_path, *arguments)[0].pixels.shape == shape


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_other_modes_are_refused_by_name_unless_asked_to_be_converted(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", colour().convert(mode))
    assert refusal(read_image, path) == f"{path}: its mode is {mode}; allowed: L or RGB, or data.source.mode to convert"
    assert read_image(path, mode="L").shape == (1, 8, 8)
    saved(path, Image.fromarray(np.full((8, 8), 40_000, np.uint16)))  # 16 bits never
    assert f"{path}: its mode is I;16; allowed: 1, L" in refusal(read_image, path, None, "L")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("content", [None, b"", b"GIF89a" + bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_truncated_or_foreign_image_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = saved(tmp_path / f"a.{suffix}", grey(64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    assert refusal(read_image, path).startswith(f"{path}: cannot be decoded: ")


@pytest.mark.parametrize(("width", "height"), [(4097, 8), (8, 5000), (10_000, 10_000), (60_000, 60_000)])
def test_a_header_claiming_a_huge_image_is_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(width, height))
    message = refusal(read_image, path)
    assert message.startswith(f"{path}: ")
    assert message.endswith("allowed: a complete PNG or JPEG image of at most 4096 pixels a side")


def test_the_camera_s_note_of_the_way_up_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "a.jpg"
    Image.new("L", (16, 8)).save(path, exif=exif)
    assert read_image(path).shape == (1, 16, 8)


def test_empty_and_missing_folders_other_files_deep_folders_and_strays_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert refusal(scan, tmp_path) == f"{tmp_path}: holds no images; allowed: at least one .png, .jpg, .jpeg"
    assert refusal(scan, tmp_path / "no").startswith(f"data.source.path: {tmp_path / 'no'}: is not a folder; allowed:")
    cats, stray = saved(tmp_path / "cats" / "a.png", grey()).parent, saved(tmp_path / "b.png", grey())
    assert refusal(scan, tmp_path).startswith(f"{stray}: lies beside class folders; allowed:")
    stray.rename(cats / "notes.txt")
    assert refusal(scan, tmp_path).startswith(f"{cats / 'notes.txt'}: is not an image file; allowed: .png")
    (cats / "notes.txt").unlink()
    (tmp_path / "dogs").mkdir()
    assert refusal(scan, tmp_path).startswith(f"{tmp_path / 'dogs'}: holds no images; allowed: at least one")
    (tmp_path / "dogs").rename(cats / "more")
    assert refusal(scan, tmp_path).startswith(f"{cats / 'more'}: is not an image file; allowed: .png")


def test_only_links_within_the_folder_to_what_is_there_are_followed(tmp_path: Path) -> None:
    outside, folder = saved(tmp_path / "outside" / "secret.png", grey()), tmp_path / "inside"
    cats = saved(folder / "cats" / "a.png", grey()).parent
    (cats / "b.png").symlink_to("a.png")
    assert len(scan(folder)[1]) == 2
    for link, target, words in (
        (cats / "c.png", outside, f"is a link out of {folder}; allowed: files, and links within it"),
        (folder / "dogs", outside.parent, f"is a link out of {folder}; allowed: files, and links within it"),
        (cats / "c.png", "gone.png", "is not an image file; allowed: .png, .jpg, .jpeg"),
    ):
        link.symlink_to(target)
        assert refusal(scan, folder) == f"{link}: {words}"
        link.unlink()
