"""Files as data sets are made of, for tests."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from vaeline.data.sources.catalogue import Item


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def item_of(name: str, content: bytes) -> Item:
    return Item(name, len(content), hashlib.sha256(content).hexdigest())


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
