"""A folder of PNG and JPEG images: the files, their classes, and their pixels, checked before decoding."""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaeline.data.sources.dataset import Split
from vaeline.errors import UserError
from vaeline.io.machine import cores
from vaeline.io.npy import blocks, scratch
from vaeline.io.processes import share_among_processes
from vaeline.io.progress import Progress
from vaeline.io.safe_read import named, read_bounded, readable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE, LARGEST_FILE = 4096, 1 << 28  # pixels, bytes
PART = 32 << 20  # bytes of pixels that a core decodes at a time
PNG, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # chunks; others describe
# how an image becomes upright, by its orientation in Exif, as Pillow numbers what it does: ROTATE_180 is 3
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
JPEG_NOTES = {*range(0xE0, 0xF0), 0xFE} - {0xEE}  # segments that describe; 0xEE says how colours are stored


@readable()
def scan(folder: Path) -> tuple[tuple[str, ...] | None, list[tuple[Path, int]]]:
    """The class names and every image with its class, in a fixed order; the names are None without subfolders.

    Either all images lie in `folder`, or each in a subfolder that is its class. Hidden files are left out. Raises
    UserError for an empty folder or class, other files, deeper folders, and links that lead out.
    """
    if not folder.is_dir():
        raise UserError(f"data.source.path: {named(folder)}: is not a folder; allowed: a folder of PNG or JPEG images")
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and (stray := [entry for entry in entries if entry not in classes]):
        raise UserError(
            f"{named(stray[0])}: lies beside class folders; allowed: only folders, or only images, in {named(folder)}"
        )
    files: list[tuple[Path, int]] = []
    places: list[os.DirEntry[str] | Path] = [*classes] or [folder]
    for label, place in enumerate(places):
        images = _visible(place)
        for entry in (place, *images) if classes else images:
            if entry.is_symlink() and folder.resolve() not in Path(os.path.realpath(entry)).parents:  # may be a loop
                allowed = "files, and links within it"
                raise UserError(f"{named(entry)}: is a link out of {named(folder)}; allowed: {allowed}")
        if not images:
            raise UserError(f"{named(place)}: holds no images; allowed: at least one {', '.join(SUFFIXES)}")
        if wrong := [entry for entry in images if not entry.is_file() or not entry.name.lower().endswith(SUFFIXES)]:
            raise UserError(f"{named(wrong[0])}: is not an image file; allowed: {', '.join(SUFFIXES)}")
        files += [(Path(entry), label) for entry in images]
    return tuple(entry.name for entry in classes) or None, files


def _visible(folder: os.PathLike[str]) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as entries:  # which knows kinds without asking for each
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def read_folder(
    folder: Path, *, scratch_folder: Path | None = None, **changes: Any
) -> tuple[Split, tuple[str, ...] | None]:
    """Decode every image of `folder`, with the changes that `read_image` makes; the class names as `scan` has them.

    The pixels lie in memory, decoded by a thread a core, or in a nameless file of `scratch_folder`, by a process a
    core: that is faster, but not for a service, whose threads and memory are not to be forked.

    Raises UserError naming the file that cannot be decoded, is too large, or is unlike the first image.
    """
    classes, files = scan(folder)
    first = read_image(files[0][0], **changes)
    pixels = scratch((len(files), *first.shape), scratch_folder)  # N x C x H x W
    paths, workers = [path for path, _ in files], cores()

    def decode(index: int) -> None:
        image = read_image(paths[index], **changes)
        if image.shape != first.shape:
            raise UserError(
                f"{named(paths[index])}: is {image.shape} (C, H, W), but {named(paths[0])} is {first.shape}; "
                "allowed: images all alike, or data.source.size and data.source.mode to make them so"
            )
        pixels[index] = image

    with Progress("decoding", len(files), "images") as reporter, ThreadPoolExecutor(workers) as threads:
        for block in blocks(pixels, workers * max(PART, first.nbytes)):
            indices = range(len(files))[block]
            if scratch_folder:
                share_among_processes(decode, indices, workers, reporter.update)
            else:
                for index, _ in zip(indices, threads.map(decode, indices), strict=True):
                    reporter.update(index + 1)
    labels = np.array([label for _, label in files], np.int64) if classes else None
    return Split(pixels, labels), classes


def read_image(
    path: Path,
    size: int | tuple[int, int] | None = None,
    mode: str | None = None,
    fit: str = "crop",
    background: str = "white",
) -> NDArray[np.uint8]:
    """One image as C x H x W, upright, changed only where asked: converted to `mode`, resized to W x H or a square.

    `mode` composites transparent pixels on `background`: what lies under alpha 0 is never seen. `fit` says how sides
    become so: crop (from the centre), stretch, or pad (with `background`). Metadata that are damaged are ignored.
    Raises UserError for what is not a complete PNG or JPEG or has 16 bits a channel, which Pillow halves or clips.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = read_bounded(path, LARGEST_FILE)
    if content.startswith(PNG) and content[24:25] == b"\x10":
        raise UserError(
            f"{named(path)}: has 16 bits a channel; allowed: 8, as `mogrify -depth 8` of ImageMagick makes them"
        )
    try:
        try:
            image = _decode(content)
        except Exception:
            image = _decode(_without_metadata(content))
    except Exception as error:  # Pillow raises many kinds, one for each way in which a file is broken
        reason = "it is neither, or its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        allowed = f"a complete PNG or JPEG image of at most {LARGEST_SIDE} pixels a side"
        raise UserError(f"{named(path)}: cannot be decoded: {reason}; allowed: {allowed}") from None
    transparent = image.has_transparency_data
    if mode is None and (transparent or image.mode not in ("L", "RGB")):
        found = f"{image.mode}{' with transparency' * transparent}"
        raise UserError(f"{named(path)}: its mode is {found}; allowed: L or RGB, or data.source.mode to convert")
    if transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    size = (size, size) if isinstance(size, int) else size
    if size is not None and image.size != size:
        if fit == "stretch":
            image = image.resize(size, Image.Resampling.LANCZOS)
        elif fit == "pad":
            ratio = image.width / image.height
            if min(size[0] / ratio, size[1] * ratio) <= 0.5:  # Pillow would leave no pixel of it
                found = f"is {image.width} x {image.height} pixels, too narrow"
                raise UserError(f"{named(path)}: {found} to pad; allowed: data.source.fit crop or stretch")
            image = ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=background)
        else:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _decode(content: bytes) -> "Picture":
    """An image, upright as the camera noted it, its size checked before a small file can become gigabytes."""
    from PIL import Image

    if any(zlib.crc32(part[4:-4]) != int.from_bytes(part[-4:]) for part in _png_chunks(content, PNG_PIXELS)):
        raise ValueError("the check sum of its pixels is wrong")  # Pillow ignores it
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, and of 89 million pixels: the limit is lower
    image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    if max(image.size) > LARGEST_SIDE:
        raise ValueError(f"its size is {image.width} x {image.height}")
    image.load()
    if content.startswith(PNG) and image.mode == "L" and (depth := content[24]) < 8 and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**depth - 1)  # Pillow scales the pixels alone
    turn = image.getexif().get(0x0112, 1)  # ImageOps.exif_transpose fails where it cannot write the other notes again
    return image.transpose(Image.Transpose(UPRIGHT[turn])) if turn in UPRIGHT else image


def _png_chunks(content: bytes, kinds: tuple[bytes, ...]) -> Iterator[bytes]:
    """The chunks of these kinds in a PNG file: length, kind, data, check sum; none in another file."""
    start = len(PNG) if content.startswith(PNG) else len(content)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] in kinds:
            yield content[start:end]
        start = end


def _without_metadata(content: bytes) -> bytes:
    """The file without the parts that describe the image: text, time, colour profile, the camera's notes."""
    if content.startswith(PNG):
        return PNG + b"".join(_png_chunks(content, (*PNG_PIXELS, b"IEND")))
    kept, start = [content[:2]], 2
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] != b"\xda":  # until the pixels
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
        if content[start + 1] not in JPEG_NOTES:
            kept.append(content[start:end])
        start = end
    return b"".join(kept) + content[start:]
