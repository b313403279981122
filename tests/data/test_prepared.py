from pathlib import Path

import numpy as np
import pytest

from data_files import refusal
from vaeline.config.data import Shapes
from vaeline.data.fetch import fetch
from vaeline.data.prepare import prepare
from vaeline.data.prepared import load_split, open_split, read_manifest
from vaeline.io.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path, section) -> Path:
    source = Shapes(kind="shapes", count=30, size=8)
    fetch(source, Workspace(tmp_path))
    prepare(section(source), tmp_path / "data/raw", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["test", "test_labels", "test_factors"])
def test_mistake_15_a_flipped_byte_a_cut_and_a_missing_file_are_refused_by_name(folder: Path, name: str) -> None:
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for damaged in (content, content[:-1]):
        path.write_bytes(damaged)
        message = refusal(open_split, folder, "test")
        assert message.startswith(f"{path}: changed since it was written: SHA-256 is ") and "allowed: " in message
    path.unlink()
    assert refusal(open_split, folder, "test").startswith(f"{path}: cannot be read: No such file")


def test_a_manifest_that_is_not_whole_torn_or_missing_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_text()
    for old, new, words in (
        ('"shape": [', '"shap": [', "shap: unknown key; did you mean 'shape'?"),
        ('"count": 22', '"count": "22"', "count: must be a valid integer; found '22'"),
        ('"format": 1', '"format": 2', "format: must be 1; found 2"),
        (whole, "{", "is not JSON"),
    ):
        path.write_text(whole.replace(old, new))
        message = refusal(read_manifest, folder)
        assert message.startswith(f"{path}: ") and words in message and message.endswith("; run the stage prepare")
    path.unlink()
    assert refusal(read_manifest, folder).startswith(f"{path}: cannot be read: No such file")


def test_splits_are_read_only_maps(folder: Path) -> None:
    pixels = load_split(folder, "train")
    assert isinstance(pixels, np.memmap) and (pixels.dtype, pixels.shape) == (np.uint8, (22, 3, 8, 8))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0
