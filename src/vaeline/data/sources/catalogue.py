"""Public data sets: every file with its pinned size and SHA-256, and the names of the classes.

A file is pinned as it lies in `data/raw`. Fashion-MNIST and MNIST are distributed in several compressions of the same
content, so they are unpacked on arrival and pinned by content. Sources of the digests: tensorflow-datasets'
`url_checksums`; Fashion-MNIST's content was computed from Debian's package, and the published `.gz` digests follow from
it; MNIST's content as published in several repositories.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vaeline.errors import UserError
from vaeline.io.atomic_write import new_file
from vaeline.io.digests import file_digest
from vaeline.io.progress import Progress

BLOCK = 1 << 20


@dataclass(frozen=True)
class Item:
    """A file: its name under `data/raw`, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PublicSet:
    """A public data set with its own test split."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]


class UnavailableError(Exception):
    """A source that cannot be reached here, or that gave wrong bytes; the next one is tried."""


def store(source: Any, item: Item, folder: Path) -> None:
    """Write `source` as `folder/item.name`; a gzip around it is removed, unless the item is one.

    Raises UnavailableError where the source breaks off or its bytes are not the pinned ones, OSError where they
    cannot be written.
    """
    unpack = not item.name.endswith((".gz", ".mat")) and source.peek(2)[:2] == b"\x1f\x8b"
    stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=source) if unpack else source
    digest, size = hashlib.sha256(), 0
    with new_file(folder / item.name) as target, Progress(item.name, item.size, "bytes") as reporter:
        while True:
            try:
                block = stream.read(BLOCK)
            except (OSError, EOFError, zlib.error) as error:
                raise UnavailableError(f"{item.name}: {error}") from None
            if not block:
                break
            target.write(block)
            digest.update(block)
            size += len(block)
            reporter.update(size)
            if size > item.size:
                raise UnavailableError(f"{item.name}: more than the {item.size} bytes expected")
    if size != item.size:
        raise UnavailableError(f"{item.name}: ends after {size} of {item.size} bytes")
    if digest.hexdigest() != item.sha256:
        raise UnavailableError(f"{item.name}: SHA-256 is {digest.hexdigest()}, pinned is {item.sha256}")


def checked(folder: Path, item: Item) -> Path:
    """Path of an item in the folder; raises UserError where it is missing or its SHA-256 is not the pinned one."""
    path = folder / item.name
    found = file_digest(path) if path.is_file() else "missing"
    if found != item.sha256:
        raise UserError(f"{path}: SHA-256 is {found}; allowed: {item.sha256}; run the stage fetch again")
    return path


def _public_set(table: str, classes: Iterable[str]) -> PublicSet:
    """Data set of a table with a file a line: name, size, SHA-256."""
    rows = (line.split() for line in table.strip().splitlines())
    return PublicSet(tuple(Item(name, int(size), sha256) for name, size, sha256 in rows), tuple(classes))


DIGIT_NAMES = tuple("0123456789")
PUBLIC_SETS = {
    "fashion-mnist": _public_set(
        """
        train-images-idx3-ubyte 47040016 c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
        train-labels-idx1-ubyte 60008 bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
        t10k-images-idx3-ubyte 7840016 5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
        t10k-labels-idx1-ubyte 10008 0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
        """,
        ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    ),
    "mnist": _public_set(
        """
        train-images-idx3-ubyte 47040016 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
        train-labels-idx1-ubyte 60008 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
        t10k-images-idx3-ubyte 7840016 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
        t10k-labels-idx1-ubyte 10008 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
        """,
        DIGIT_NAMES,
    ),
    "kmnist": _public_set(
        """
        train-images-idx3-ubyte.gz 18165135 51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
        train-labels-idx1-ubyte.gz 29497 e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
        t10k-images-idx3-ubyte.gz 3041136 edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
        t10k-labels-idx1-ubyte.gz 5120 20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
        """,
        ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
    ),
    "cifar10": _public_set(  # the binary version: the Python version is a pickle
        """
        cifar-10-binary.tar.gz 170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
        """,
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    ),
    "svhn": _public_set(
        """
        train_32x32.mat 182040794 435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8
        test_32x32.mat 64275384 cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b
        """,
        DIGIT_NAMES,
    ),
    "digits": _public_set(  # scikit-learn ships it: 1,797 lines of 64 pixels from 0 to 16 and the digit
        "digits.csv 264712 6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8", DIGIT_NAMES
    ),
}

SHAPE_NAMES = ("square", "ellipse", "triangle")
