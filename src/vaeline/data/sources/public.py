"""Public data sets: the sources of one, tried in order until one gives the pinned bytes."""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeline.data.sources.catalogue import PUBLIC_SETS, Item
from vaeline.data.sources.debian import PACKAGE, installed_folder, unpack_package
from vaeline.data.sources.pinned import UnavailableError, store
from vaeline.errors import TransientError
from vaeline.io.progress import Progress, progress

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "VAELINE_DATA_DIR"
TIMEOUT_S = (6.0, 20.0)  # to connect, and without a byte
BLOCK = 1 << 16


def fetch_public(kind: str, folder: Path) -> None:
    """Fill `folder` with the files of the public data set `kind`, each checked against its SHA-256.

    The order: a folder the user names by VAELINE_DATA_DIR; for fashion-mnist the Debian package's folder;
    torchvision's mirrors; for fashion-mnist the Debian package, downloaded and unpacked without root.
    The log names the one used. Raises TransientError listing what was tried where none can be reached.
    """
    debian = kind == "fashion-mnist"
    sources = (_user_folder, *(_debian_folder,) * debian, _mirrors, *(_debian_package,) * debian)
    tried = []
    for source in sources:
        try:
            log.info("%s: taken from %s", kind, source(kind, folder))
            return
        except UnavailableError as reason:
            tried.append(str(reason))
            log.info("%s: %s", kind, reason)
    names = ", ".join(item.name for item in PUBLIC_SETS[kind].items)
    fix = f"connect to the network, or set {FOLDER_VARIABLE} to a folder that holds {names}"
    lines = ["no source could be reached; tried:", *(f"  - {reason}" for reason in tried), f"what to do: {fix}"]
    raise TransientError("\n".join(f"{kind}: {line}" for line in lines))


def _user_folder(kind: str, folder: Path) -> str:
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        raise UnavailableError(f"{FOLDER_VARIABLE} is not set")
    origin = Path(named).expanduser()
    origin = origin / kind if (origin / kind).is_dir() else origin
    try:
        _copy(kind, origin, folder)
    except UnavailableError as reason:
        raise UnavailableError(f"{FOLDER_VARIABLE}: {reason}") from None
    return f"{origin} ({FOLDER_VARIABLE})"


def _debian_folder(kind: str, folder: Path) -> str:
    origin = installed_folder()
    _copy(kind, origin, folder)
    return f"{origin} (the Debian package {PACKAGE})"


def _debian_package(kind: str, folder: Path) -> str:
    log.info("%s: downloading the Debian package %s with apt-get, into a private folder", kind, PACKAGE)
    unpack_package(PUBLIC_SETS[kind].items, folder)
    return f"the Debian package {PACKAGE}, downloaded"


def _copy(kind: str, origin: Path, folder: Path) -> None:
    for item in PUBLIC_SETS[kind].items:
        names = (item.name, f"{item.name}.gz") if item.unpacked else (item.name,)
        found = next((origin / name for name in names if (origin / name).is_file()), None)
        if found is None:
            raise UnavailableError(f"{origin}: holds no {' or '.join(names)}")
        try:
            source = found.open("rb")
        except OSError as error:
            raise UnavailableError(f"{found}: {error.strerror}") from None
        try:
            with source:
                store(source, item, folder)
        except UnavailableError as reason:
            raise UnavailableError(f"{origin}: {reason}") from None


def _mirrors(kind: str, folder: Path) -> str:
    log.info("%s: asking torchvision for its mirrors", kind)
    reasons = []
    for mirror in torchvision_mirrors(kind):
        address = next(iter(mirror.values())).rpartition("/")[0]
        try:
            for item in PUBLIC_SETS[kind].items:
                _download(mirror[item.name], item, folder)
            return f"torchvision's mirror {address}"
        except UnavailableError as reason:
            reasons.append(f"{address}: {reason}")
    raise UnavailableError("; ".join(reasons))


def open_mirror(kind: str) -> str | None:
    """The address of the first mirror that answers, or None."""
    for mirror in torchvision_mirrors(kind):
        url = next(iter(mirror.values()))
        try:
            _request(url, None, check_only=True)
            return url.rpartition("/")[0]
        except UnavailableError:
            continue
    return None


def torchvision_mirrors(kind: str) -> list[Mapping[str, str]]:
    """For each mirror the address of each file, as the installed torchvision knows them (its import takes seconds)."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UnavailableError(f"torchvision, which knows the mirrors, cannot be imported: {error}") from None
    items = PUBLIC_SETS[kind].items
    if kind == "cifar10":
        return [{items[0].name: datasets.CIFAR10.url.replace("-python", "-binary")}]
    if kind == "svhn":
        return [{name: url for url, name, _ in datasets.SVHN.split_list.values()}]
    cls = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[kind]
    return [{item.name: f"{mirror}{item.name.removesuffix('.gz')}.gz" for item in items} for mirror in cls.mirrors]


def _download(url: str, item: Item, folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file, progress(item.name, item.size, "bytes") as reporter:
        _request(url, file, progressbar=_PoochProgress(reporter, item))
        file.seek(0)
        store(file, item, folder)


def _request(url: str, file: Any, check_only: bool = False, **options: Any) -> None:
    """Download by pooch into an open file, or only ask for it; raises UnavailableError."""
    import pooch  # type: ignore[import-untyped]
    import requests

    headers = {"User-Agent": "vaeline", "Accept-Encoding": "identity"}
    downloader = pooch.HTTPDownloader(chunk_size=BLOCK, timeout=TIMEOUT_S, headers=headers, **options)
    try:
        if downloader(url, file, None, check_only=check_only) is False:
            raise UnavailableError("does not offer the file")
    except requests.RequestException as error:
        cause = error.args[0] if error.args else error
        raise UnavailableError(str(getattr(cause, "reason", None) or cause)) from None


class _PoochProgress:
    """Progress bar as pooch calls it; stops a download that is larger than the item."""

    def __init__(self, reporter: Progress, item: Item) -> None:
        self.reporter, self.item, self.total, self.done = reporter, item, item.size, 0

    def update(self, count: int) -> None:
        """Add the bytes of a block."""
        self.done += count
        if self.done > self.item.size + BLOCK:
            raise UnavailableError(f"{self.item.name}: more than the {self.item.size} bytes expected")
        self.reporter.update(min(self.done, self.item.size))

    def reset(self) -> None:
        """Start again."""
        self.done = 0

    def close(self) -> None:
        """End."""
