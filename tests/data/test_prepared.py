import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeline.config import Shapes
from vaeline.data.fetch import fetch
from vaeline.data.prepare import prepare
from vaeline.data.prepared import load_factors, load_labels, load_split, manifest_digest, read_manifest
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path, section) -> Path:
    source = Shapes(kind="shapes", count=30, size=8)
    fetch(source, Workspace(tmp_path))
    prepare(section(source), tmp_path / "data/raw", tmp_path / "out")
    return tmp_path / "out"


def refusal(read: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("load", "name"), [(load_split, "test"), (load_labels, "test_labels"), (load_factors, "test_factors")]
)
def test_mistake_15_a_flipped_byte_a_cut_and_a_missing_file_are_refused_by_name(
    folder: Path, load: Callable[..., object], name: str
) -> None:
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    assert load(folder, "test") is not None
    content[-1] ^= 1
    path.write_bytes(content)
    message = refusal(load, folder, "test")
    assert message.startswith(f"{path}: changed since it was written: SHA-256 is ") and "allowed: " in message
    path.write_bytes(content[:-1])
    assert refusal(load, folder, "test").startswith(f"{path}: changed since it was written")
    path.unlink()
    assert refusal(load, folder, "test").startswith(f"{path}: cannot be read: No such file")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_an_array_that_is_not_of_the_manifest_s_shape_is_refused(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(shape=[3, 8, 9]))
    assert refusal(load_split, folder, "train").startswith(
        f"{folder / 'train.npy'}: is uint8 (24, 3, 8, 8); allowed: uint8 24 x 3 x 8 x 9"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest.pop("shape"), "shape: missing"),
        (lambda manifest: manifest["splits"].pop("test"), "has the splits train, validation; allowed: train"),
        (lambda manifest: manifest["splits"]["test"].update(count="3"), "count: must be a valid integer; found '3'"),
        (lambda manifest: manifest.update(format=2), "format: must be 1; found 2"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_whole_is_refused(folder: Path, change: Callable[..., object], says: str) -> None:
    rewrite(folder, change)
    message = refusal(read_manifest, folder)
    assert message.startswith(f"{folder / 'manifest.json'}: ") and says in message


def test_a_missing_or_torn_manifest_and_an_unknown_split_are_refused(folder: Path) -> None:
    assert refusal(load_split, folder, "tests") == "split 'tests' is unknown; allowed: train, validation, test"
    (folder / "manifest.json").write_text("{")
    assert refusal(read_manifest, folder).startswith(f"{folder / 'manifest.json'}: is not JSON")
    (folder / "manifest.json").unlink()
    assert refusal(read_manifest, folder).startswith(f"{folder / 'manifest.json'}: cannot be read: No such file")


def test_the_digest_of_the_data_changes_with_a_label(folder: Path) -> None:
    before = manifest_digest(folder)
    rewrite(folder, lambda manifest: manifest["splits"]["test"].update(labels_sha256="0" * 64))
    assert manifest_digest(folder) != before


def test_splits_are_read_only_maps(folder: Path) -> None:
    pixels = load_split(folder, "train")
    assert isinstance(pixels, np.memmap) and (pixels.dtype, pixels.shape) == (np.uint8, (24, 3, 8, 8))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0
