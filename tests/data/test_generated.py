"""Generated data sets through fetch and prepare, judged by a rule that is written here, not taken from the code."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaeline.command.program import explain
from vaeline.config.data import Data
from vaeline.data.fetch import fetch
from vaeline.data.prepare import prepare
from vaeline.data.prepared import SPLITS, open_split
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

COUNT = 24
Expected = np.ndarray | None  # the images [N, C, H, W] that must come out, in any order; None: a refusal must
LABELS: dict[str, tuple[Callable[[np.random.Generator], Any], bool]] = {  # and whether a training can use them
    "none": (lambda rng: None, True),
    "numbers": (lambda rng: rng.permutation(COUNT) % 3, True),
    "huge numbers": (lambda rng: np.arange(COUNT) // 2 + 10**15, True),
    "names": (lambda rng: rng.permutation(["a", "\u00fc\x1b[31m", "c" * 300] * (COUNT // 3)), True),
    "bytes": (lambda rng: rng.permutation([b"a", b"\xff"] * (COUNT // 2)), True),
    "fractions": (lambda rng: rng.permutation(COUNT) % 2 / 3, True),
    "one image a class": (lambda rng: np.arange(COUNT) * 10**9, False),
    "not a number": (lambda rng: np.full(COUNT, np.nan), False),
    "too few": (lambda rng: np.zeros(COUNT - 1, int), False),
    "one-hot": (lambda rng: np.eye(COUNT), False),
    "objects": (lambda rng: np.array([{}] * COUNT), False),
}
RANGES = ((0, 31), (0, 1), (-128, 127), (0, 4095), (0, 65535), (100, 100))
DTYPES = (np.int16, np.int64, np.uint16, np.uint64, np.float32, np.float64, np.bool_)


def mostly(rng: np.random.Generator, usual: Any, *others: Any) -> Any:
    """The usual, or one time in eight one of the others."""
    return others[rng.integers(len(others))] if rng.random() < 1 / 8 else usual


def npz_file(rng: np.random.Generator, path: Path) -> tuple[dict[str, Any], Expected]:
    """An .npz file of any dtype, range, shape, labels, damage."""
    (low, high), dtype = mostly(rng, (0, 255), *RANGES), np.dtype(mostly(rng, np.uint8, *DTYPES))
    channels, height, width = mostly(rng, int(rng.choice([0, 1, 3])), 2, 4), *(mostly(rng, 8, 1, 3, 17) for _ in "HW")
    values = rng.integers(low, high + 1, (COUNT, height, width, max(1, channels)))
    images = values.astype(dtype) if channels else values[..., 0].astype(dtype)  # N x H x W (x C)
    first, kind = mostly(rng, False, True), mostly(rng, "none", *LABELS, *LABELS)
    labels, usable = LABELS[kind][0](rng), LABELS[kind][1]
    damaged, few = mostly(rng, False, True), mostly(rng, False, True)
    stored = np.moveaxis(images, -1, 1) if first and channels else images
    stored, labels = (stored[:9], None if labels is None else labels[:9]) if few else (stored, labels)
    np.savez(path, images=stored, **({} if labels is None else {"labels": labels}))
    if damaged:
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content) // 2)] ^= 255
        path.write_bytes(content[: -int(rng.integers(1, 200))])
    whole = dtype.kind in "iu" and dtype != np.uint16 and images.min() >= 0 and images.max() <= 255
    bright, large = images.max() >= 32, min(height, width) >= 4
    layout = channels in (0, 1, 3) and not (first and channels)
    distinct = len({image.tobytes() for image in images}) == COUNT
    good = whole and bright and large and layout and distinct and usable and not damaged and not few
    pixels = np.moveaxis(values, -1, 1) if good else None
    return {"kind": "npz", "path": str(path)}, pixels


def image_folder(rng: np.random.Generator, folder: Path) -> tuple[dict[str, Any], Expected]:
    """A folder of PNG files of one mode, in classes or not, with any names; one of them may differ or be damaged."""
    mode = str(rng.choice(["L", "RGB", "RGBA", "LA", "P", "1", "L in 16 bits", "L up to 31"]))
    wanted, background = (None, "L", "RGB")[rng.integers(3)], str(rng.choice(["white", "black"]))
    harm = str(rng.choice(["none", "none", "cut", "foreign", "note", "size", "text file"]))
    classes = int(rng.integers(3))
    pixels = []
    for index in range(COUNT):
        side = 9 if harm == "size" and index == 7 else 8
        alpha = np.where(rng.random((side, side)) < 0.5, 0, 255)
        grey = rng.integers(0, 256, (side, side)) if mode != "L up to 31" else rng.integers(0, 32, (side, side))
        colour = rng.integers(0, 256, (side, side, 3))
        match mode:
            case "RGB" | "RGBA":
                shown = colour if mode == "RGB" else np.where(alpha[..., None], colour, 255 * (background == "white"))
                image = Image.fromarray((colour if mode == "RGB" else np.dstack([colour, alpha])).astype(np.uint8))
            case "LA":
                shown = np.where(alpha, grey, 255 * (background == "white"))
                image = Image.fromarray(np.dstack([grey, alpha]).astype(np.uint8))
            case "1":
                shown, image = alpha, Image.fromarray(alpha.astype(np.uint8)).convert("1")
            case "P":  # black on transparent
                shown = np.where(alpha, 0, 255 * (background == "white"))
                image = Image.fromarray((alpha > 0).astype(np.uint8)).convert("P")
                image.putpalette([0, 0, 0] * 256)
                image.info["transparency"] = 0
            case _:
                shown = grey
                image = Image.fromarray((grey * 257).astype(np.uint16) if "16" in mode else grey.astype(np.uint8))
        name = (f"{index}.png", os.fsdecode(b"\xff%d\n.PNG" % index), f"\u202e{index} .png")[index % 3]
        path = folder / (f"class {index % classes}\x07" if classes else ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG")
        if index == 7:
            spoil(path, harm)
        pixels.append(shown)
    if harm in ("none", "note") and (wanted or mode in ("L", "RGB")) and mode not in ("L in 16 bits", "L up to 31"):
        if mode == "P" and background == "black":
            expected = None  # all black
        else:
            arrays = [Image.fromarray(shown.astype(np.uint8)).convert(wanted or mode) for shown in pixels]
            expected = np.stack([np.atleast_3d(np.asarray(array)).transpose(2, 0, 1) for array in arrays])
    else:
        expected = None
    return {"kind": "folder", "path": str(folder), "mode": wanted, "background": background}, expected


def spoil(path: Path, harm: str) -> None:
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "foreign":
        path.write_bytes(b"GIF89a" + content)
    elif harm == "note":
        path.write_bytes(content[:33] + b"\0\0\0\4tEXtjunkoops" + content[33:])
    elif harm == "text file":
        path.with_name("notes.txt").write_bytes(b"")


def check(seed: int, root: Path) -> bool:
    """Whether the data set of this seed was accepted, after a comparison with what it should be."""
    rng = np.random.default_rng(seed)
    make = npz_file if seed % 2 else image_folder
    section, expected = make(rng, root / f"set{'.npz' if seed % 2 else ''}")
    data = Data.model_validate({"source": section, "binarise": "none", "validation": 4, "test": "auto", "seed": 1})
    workspace = Workspace(root, root)
    try:
        fetch(data.source, workspace)
        assert all(str(path).encode() for path in workspace.raw.rglob("*")), "DVC keeps no name that is not UTF-8"
        prepare(data, workspace.raw, workspace.prepared, workspace.reports / "data")
    except UserError as error:
        assert expected is None, f"seed {seed}: {error}"
        assert str(error).isprintable() and len(str(error)) <= 400, f"seed {seed}: {error!r}"
        assert explain(error) == [str(error)]
        assert not workspace.prepared.exists()
        return False
    assert expected is not None, f"seed {seed}: accepted"
    out = np.concatenate([open_split(workspace.prepared, name).pixels for name in SPLITS])
    assert sorted(image.tobytes() for image in out) == sorted(image.tobytes() for image in expected.astype(np.uint8))
    return True


@pytest.mark.parametrize("seeds", [range(16), pytest.param(range(16, 316), marks=pytest.mark.slow)], ids=str)
def test_generated_data_sets_come_out_as_they_should_or_are_refused_in_one_line(tmp_path: Path, seeds: range) -> None:
    accepted = []
    for seed in seeds:
        (tmp_path / str(seed)).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy casts what it must
            accepted.append(check(seed, tmp_path / str(seed)))
    assert len(seeds) / 10 < sum(accepted) < len(seeds) * 0.9
