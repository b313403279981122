"""Files as data sets are made of, for tests."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeline.config.data import Data, Source
from vaeline.data.sources import public
from vaeline.data.sources.catalogue import Item, PublicSet, UnavailableError
from vaeline.errors import UserError


def refusal(read: Callable[..., object], *arguments: object, **named: object) -> str:
    """The one line with which `read` refuses its arguments."""
    with pytest.raises(UserError) as caught:
        read(*arguments, **named)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 400
    return str(caught.value)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def pin(monkeypatch: pytest.MonkeyPatch, kind: str, files: dict[str, bytes]) -> None:
    """Make these the files of a public data set, in the order of the catalogue."""
    items = (Item(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items())
    monkeypatch.setitem(public.PUBLIC_SETS, kind, PublicSet(tuple(items), tuple("abcdefghij")))


def packed(content: bytes) -> bytes:
    """Gzipped, the same bytes at any time: tests are named by them."""
    return gzip.compress(content, mtime=0)


def write_packed(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(packed(content))
    return folder


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def section() -> Callable[..., Data]:
    """Section `data` with small defaults around a source."""

    def make(source: Source, **changes: Any) -> Data:
        values = {"binarise": "none", "validation": 4, "test": "auto", "seed": 1} | changes
        return Data(source=source, **values)

    return make


@pytest.fixture(scope="session")
def fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four real files, from Debian's package (31 MB, downloaded once a session)."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    try:
        public.download_package("fashion-mnist", folder)
    except UnavailableError as reason:
        if str(reason).startswith("apt-get"):
            pytest.skip(f"no Debian or Ubuntu archive within reach: {reason}")
        raise
    return folder


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Fashion-MNIST shrunk to 30 + 10 images of 4 x 5 pixels: the files by name, pinned in the catalogue."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 4, 5)),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 30),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 4, 5)),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 10),
    }
    files = {name: idx_bytes(array) for name, array in arrays.items()}
    pin(monkeypatch, "fashion-mnist", files)
    return files
