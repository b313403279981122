import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import refusal
from vaeline.data.sources.images import PNG, read_folder, read_image, scan


def grey(side: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))


def colour(side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8))


def saved(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int = 8, colours: int = 0, rows: bytes = bytes(1000)) -> bytes:
    """A PNG whose header claims anything."""
    header = struct.pack(">2I5B", width, height, bits, colours, 0, 0, 0)
    return PNG + b"".join(
        png_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def test_pixels_come_out_as_channels_height_width(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))  # 3 wide, 2 high
    array = read_image(saved(tmp_path / "a.png", image))
    assert array.shape == (3, 2, 3)
    np.testing.assert_array_equal(array[1], np.asarray(image)[:, :, 1])
    images, classes = read_folder(tmp_path)  # without class folders there are no labels
    assert (images.pixels.shape, images.labels, classes) == ((1, 3, 2, 3), None, None)


def test_class_folders_become_labels_in_order_of_name(tmp_path: Path) -> None:
    for name, seed in (("dogs/1.png", 1), ("cats/b.png", 2), ("cats/a.PNG", 3)):
        saved(tmp_path / name, grey(seed=seed))
    (tmp_path / "cats" / ".DS_Store").write_bytes(b"?")
    images, classes = read_folder(tmp_path)
    assert classes == ("cats", "dogs")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 1]
    expected = [np.asarray(grey(seed=seed))[None] for seed in (3, 2, 1)]
    np.testing.assert_array_equal(images.pixels, expected)


@pytest.mark.parametrize(
    ("other", "found", "key", "changes", "shape"),
    [(grey(9), "(1, 9, 9)", "size", {"size": 6}, (2, 1, 6, 6)),
     (colour(), "(3, 8, 8)", "mode", {"mode": "RGB"}, (2, 3, 8, 8))],
)  # fmt: skip
def test_mixed_sizes_and_modes_are_refused_by_name_unless_asked_to_be_changed(
    *, tmp_path: Path, other: Image.Image, found: str, key: str, changes: dict, shape: tuple[int, ...]
) -> None:
    first, second = saved(tmp_path / "a.png", grey()), saved(tmp_path / "b.png", other)
    message = refusal(read_folder, tmp_path)
    assert message.startswith(f"{second}: is {found} (C, H, W), but {first} is (1, 8, 8); allowed:")
    assert f"data.source.{key}" in message
    assert read_folder(tmp_path, **changes)[0].pixels.shape == shape


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_other_modes_are_refused_by_name_unless_asked_to_be_converted(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", colour().convert(mode))
    found = f"{mode} with transparency" if mode.endswith("A") else mode
    assert (
        refusal(read_image, path) == f"{path}: its mode is {found}; allowed: L or RGB, or data.source.mode to convert"
    )
    assert read_image(path, mode="L").shape == (1, 8, 8)


@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused_with_what_makes_eight(tmp_path: Path, colours: int, channels: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, 16, colours, (b"\0" + bytes(range(2 * channels * 4))) * 4))
    with Image.open(path) as image:
        image.load()  # it is a sound file
    for mode in (None, "L", "RGB"):
        assert refusal(read_image, path, None, mode).startswith(f"{path}: has 16 bits a channel; allowed: 8, as ")


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB", "P in RGBA", "2 bits", "4 bits"])
def test_transparent_pixels_show_the_background_never_what_lies_under_them(tmp_path: Path, kind: str) -> None:
    """The left half is transparent noise, the right half opaque black."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    noise[:, 4:, :3], noise[:, :4, 3], noise[:, 4:, 3] = 0, 0, 255
    if kind in ("L", "RGB"):  # one colour is transparent
        noise[:, :4, :3] = 7
        Image.fromarray(noise[..., :3]).convert(kind).save(
            tmp_path / "a.png", transparency=7 if kind == "L" else (7, 7, 7)
        )
    elif kind.endswith("bits"):  # grey, of which one level is transparent
        row, level = {"2 bits": (b"\0\x55\0", 1), "4 bits": (b"\0\x77\x77\0\0", 7)}[kind]
        content = png(8, 8, int(kind[0]), rows=8 * row)
        (tmp_path / "a.png").write_bytes(content[:33] + png_chunk(b"tRNS", bytes([0, level])) + content[33:])
    elif kind == "P":  # a black palette: black on transparent
        image = Image.fromarray((noise[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0] * 256)
        image.save(tmp_path / "a.png", transparency=0)
    else:
        image = Image.fromarray(noise)
        image = image.quantize(64) if kind == "P in RGBA" else image.convert(kind)
        image.save(tmp_path / "a.png")
    for background, value in (("white", 255), ("black", 0)):
        read = read_image(tmp_path / "a.png", mode="RGB", background=background)
        assert (read[:, :, :4] == value).all()
        assert (read[:, :, 4:] == 0).all()


def test_sides_become_equal_by_a_crop_of_the_centre_a_frame_or_a_stretch(tmp_path: Path) -> None:
    """Four wide bars, 40 x 20 pixels: 50, 100, 150 and 200."""
    bars = np.repeat(np.array([50, 100, 150, 200], np.uint8), 10)[None].repeat(20, 0)
    path = saved(tmp_path / "a.png", Image.fromarray(bars))
    crop, stretch, pad = (read_image(path, 8, fit=fit)[0] for fit in ("crop", "stretch", "pad"))
    assert crop.shape == stretch.shape == pad.shape == (8, 8)
    assert np.abs(crop[4, [0, 1, 6, 7]] - np.array([100, 100, 150, 150])).max() < 5
    assert np.abs(stretch[4, [0, 7]] - np.array([50, 200])).max() < 5
    assert (pad[[0, 1, 6, 7]] == 255).all() and np.abs(pad[4, [0, 7]] - np.array([50, 200])).max() < 5
    assert (read_image(path, 8)[0] == crop).all()
    narrow = saved(tmp_path / "c.png", Image.new("L", (3, 400)))
    assert ": is 3 x 400 pixels, too narrow to pad; allowed" in refusal(read_image, narrow, 64, fit="pad")
    assert (read_image(narrow, 100, fit="pad") == 0).any()
    square = saved(tmp_path / "b.png", grey(20))
    for fit in ("crop", "stretch", "pad"):
        assert read_image(square, 8, fit=fit).tobytes() == grey(20).resize((8, 8), Image.Resampling.LANCZOS).tobytes()


def with_note(content: bytes, kind: bytes, note: bytes) -> bytes:
    """The file with a part that describes the image, right after its header; a PNG chunk's check sum is wrong."""
    if content.startswith(PNG):
        return content[:33] + png_chunk(kind, note)[:-4] + b"oops" + content[33:]
    return content[:2] + b"\xff" + kind + struct.pack(">H", len(note) + 2) + note + content[2:]


@pytest.mark.parametrize(
    ("suffix", "kind", "note"),
    [
        *[("png", kind, b"junk") for kind in (b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"iCCP", b"eXIf", b"tIME", b"acTL")],
        *[("jpg", b"\xe1", b"Exif\0\0" + junk) for junk in (b"", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 50)],
        ("jpg", b"\xe2", b"MPF\0II*\0\x08\0\0\0\x01\0\0\xb0\x07\0\x04\0\0\0zzzz"),
        *[("jpg", kind, note) for kind, note in ((b"\xe0", b"JFIF\0"), (b"\xed", b"Photoshop 3.0\x008BIM"))],
    ],
)  # fmt: skip
def test_sound_pixels_with_damaged_metadata_are_read(tmp_path: Path, suffix: str, kind: bytes, note: bytes) -> None:
    path = saved(tmp_path / f"a.{suffix}", grey())
    pixels = read_image(path)
    path.write_bytes(with_note(path.read_bytes(), kind, note))
    np.testing.assert_array_equal(read_image(path), pixels)


def test_names_of_any_bytes_are_read_or_named_in_one_escaped_line(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"\xff\n\x1b[31m", "\u00fc \u202e".encode())]
    paths = [saved(tmp_path / name / os.fsdecode(b"\xfe.png"), grey()) for name in names]
    images, classes = read_folder(tmp_path)
    assert images.pixels.shape == (2, 1, 8, 8) and classes == tuple(sorted(names))
    for content in (b"?", png(4, 4, 16), png(9, 9)):
        paths[0].write_bytes(content)
        assert refusal(read_folder, tmp_path).isprintable()
    paths[0].rename(paths[0].with_suffix(".txt"))
    assert refusal(scan, tmp_path).isprintable()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"GIF89a" + bytes(100), PNG + bytes(100)]
    + [png(*size) for size in ((4097, 8), (8, 5000), (10_000, 10_000), (60_000, 60_000))],
)
def test_a_truncated_foreign_or_huge_image_is_refused_by_name(
    tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    path = saved(tmp_path / f"a.{suffix}", grey(64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    message = refusal(read_image, path)
    assert message.startswith(f"{path}: cannot be decoded: ")
    assert message.endswith("; allowed: a complete PNG or JPEG image of at most 4096 pixels a side")


def test_pixels_that_do_not_fit_their_check_sum_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", grey())
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the last pixels; Pillow reads on
    path.write_bytes(content)
    assert "cannot be decoded: the check sum of its pixels is wrong; allowed" in refusal(read_image, path)


@pytest.mark.parametrize("way", range(1, 9))
def test_the_camera_s_note_of_the_way_up_is_followed_whatever_else_it_says(tmp_path: Path, way: int) -> None:
    """Beside a resolution that is text, which Pillow cannot write again."""
    seen = np.arange(54, dtype=np.uint8).reshape(6, 9)
    turned = [seen, seen[:, ::-1], seen[::-1, ::-1], seen[::-1], seen.T, np.rot90(seen, -1), seen[::-1, ::-1].T]
    notes = struct.pack("<HHIHHHHI4s4x", 0x0112, 3, 1, way, 0, 0x011A, 2, 2, b"a")  # each: key, type, count, value
    content = saved(path := tmp_path / "a.png", Image.fromarray(seen)).read_bytes()
    path.write_bytes(content[:33] + png_chunk(b"eXIf", b"II*\0\x08\0\0\0\2\0" + notes) + content[33:])
    np.testing.assert_array_equal(read_image(path)[0], [*turned, np.rot90(seen)][way - 1])


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


def test_images_in_a_scratch_file_are_those_in_memory_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    for number in range(50):
        saved(tmp_path / "images" / f"{number:02}.png", grey(seed=number))
    (folder := tmp_path / "scratch").mkdir()
    images, _ = read_folder(tmp_path / "images", scratch_folder=folder, size=6)
    np.testing.assert_array_equal(images.pixels, read_folder(tmp_path / "images", size=6)[0].pixels)
    assert isinstance(images.pixels, np.memmap) and not list(folder.iterdir())


def test_of_two_bad_files_the_first_is_named_whichever_core_is_sooner(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number in range(20):
        saved(folder / f"{number:02}.png", grey())
    for number in (18, 6, 5):
        (folder / f"{number:02}.png").write_bytes(b"")
        for scratch in (None, tmp_path):
            message = refusal(read_folder, folder, scratch_folder=scratch)
            assert message.startswith(f"{folder / f'{number:02}.png'}: cannot be decoded")
