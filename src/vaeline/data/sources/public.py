"""The ways to a public data set, tried in order until one gives the pinned bytes."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from vaeline.data.sources.catalogue import PUBLIC_SETS, Item
from vaeline.data.sources.debian import PACKAGE, installed_folder, unpack_package
from vaeline.data.sources.download import UnavailableError, open_url, store
from vaeline.errors import TransientError
from vaeline.io.progress import progress

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "VAELINE_DATA_DIR"
Way = Callable[[str, Path], str]  # (kind, folder to fill) -> what was used, in words


def fetch_public(kind: str, folder: Path) -> None:
    """Fill `folder` with the files of the public data set `kind`, each checked against its SHA-256.

    The order: a folder the user names by VAELINE_DATA_DIR; for fashion-mnist the Debian package's folder;
    torchvision's mirrors; for fashion-mnist the Debian package, downloaded and unpacked without root.
    The log says which way was taken. Raises TransientError listing what was tried and what to do where none is open.
    """
    debian = kind == "fashion-mnist"
    ways = (_user_folder, *(_debian_folder,) * debian, _mirrors, *(_debian_package,) * debian)
    tried = []
    for way in ways:
        try:
            log.info("%s: taken from %s", kind, way(kind, folder))
            return
        except UnavailableError as reason:
            tried.append(str(reason))
            log.info("%s: %s", kind, reason)
    names = ", ".join(item.name for item in PUBLIC_SETS[kind].items)
    mend = f"connect to the network, or set {FOLDER_VARIABLE} to a folder that holds {names}"
    lines = ["no source could be reached; tried:", *(f"  - {reason}" for reason in tried), f"what to do: {mend}"]
    raise TransientError("\n".join(f"{kind}: {line}" for line in lines))


def _user_folder(kind: str, folder: Path) -> str:
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        raise UnavailableError(f"{FOLDER_VARIABLE} is not set")
    place = Path(named).expanduser()
    place = place / kind if (place / kind).is_dir() else place
    try:
        _copy(kind, place, folder)
    except UnavailableError as reason:
        raise UnavailableError(f"{FOLDER_VARIABLE}: {reason}") from None
    return f"{place} ({FOLDER_VARIABLE})"


def _debian_folder(kind: str, folder: Path) -> str:
    place = installed_folder()
    _copy(kind, place, folder)
    return f"{place} (the Debian package {PACKAGE})"


def _debian_package(kind: str, folder: Path) -> str:
    log.info("%s: downloading the Debian package %s with apt-get, into a private folder", kind, PACKAGE)
    unpack_package(PUBLIC_SETS[kind].items, folder)
    return f"the Debian package {PACKAGE}, downloaded"


def _copy(kind: str, place: Path, folder: Path) -> None:
    for item in PUBLIC_SETS[kind].items:
        names = (item.name, f"{item.name}.gz") if item.unpacked else (item.name,)
        found = next((place / name for name in names if (place / name).is_file()), None)
        if found is None:
            raise UnavailableError(f"{place}: holds no {' or '.join(names)}")
        try:
            with _opened(found) as source:
                store(source, item, folder, packed=found.name != item.name)
        except UnavailableError as reason:
            raise UnavailableError(f"{place}: {reason}") from None


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnavailableError(f"{path.name}: {error.strerror}") from None


def _mirrors(kind: str, folder: Path) -> str:
    log.info("%s: asking torchvision for its mirrors", kind)
    reasons = []
    for mirror in torchvision_mirrors(kind):
        address = next(iter(mirror.values())).rpartition("/")[0]
        try:
            for item in PUBLIC_SETS[kind].items:
                with open_url(mirror[item.name]) as source, progress(item.name, item.size, "bytes") as bar:
                    store(source, item, folder, packed=item.unpacked, report=bar.update)
            return f"torchvision's mirror {address}"
        except UnavailableError as reason:
            reasons.append(f"{address}: {reason}")
    raise UnavailableError("; ".join(reasons))


def torchvision_mirrors(kind: str) -> list[Mapping[str, str]]:
    """For each mirror the address of each file, as the installed torchvision knows them (its import takes seconds)."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UnavailableError(f"torchvision, which knows the mirrors, cannot be imported: {error}") from None
    items: tuple[Item, ...] = PUBLIC_SETS[kind].items
    if kind == "cifar10":
        return [{items[0].name: datasets.CIFAR10.url.replace("-python", "-binary")}]
    if kind == "svhn":
        return [{name: url for url, name, _ in datasets.SVHN.split_list.values()}]
    cls = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[kind]
    packed = {item.name: f"{item.name.removesuffix('.gz')}.gz" for item in items}
    return [{name: mirror + file for name, file in packed.items()} for mirror in cls.mirrors]
