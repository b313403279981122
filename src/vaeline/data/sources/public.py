"""Public data sets: the sources of one, tried in order until one gives the pinned bytes."""

import io
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from vaeline.data.sources.catalogue import BLOCK, PUBLIC_SETS, UnavailableError, store
from vaeline.errors import TransientError

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "VAELINE_DATA_DIR"
TIMEOUT_S = (6.0, 20.0)  # to connect, and without a byte
PACKAGE = "dataset-fashion-mnist"  # Debian's, 31 MB
PACKAGE_FILE = "train-images-idx3-ubyte.gz"
APT_SECONDS = 600
APT_OPTIONS = (
    "APT::Sandbox::User=",  # as root it would drop to a user that cannot write into our folder
    "Acquire::Retries=1",
    "Acquire::http::Timeout=15",
    "Acquire::https::Timeout=15",
    "Acquire::Languages=none",
)


def fetch_public(kind: str, folder: Path, before: Path) -> None:
    """Fill `folder` with the files of the public data set `kind`, each checked against its SHA-256.

    The order: the folder `before`, which an earlier fetch filled; a folder the user names by VAELINE_DATA_DIR;
    torchvision's mirrors, or the installed scikit-learn for its digits; for fashion-mnist the Debian package,
    downloaded and unpacked without root. The log names the one used.
    Raises TransientError listing what was tried where none can be reached.
    """
    sources = {"fashion-mnist": [_user_folder, _mirrors, download_package], "digits": [_user_folder, _scikit_learn]}
    tried, wanted = [], sources.get(kind, [_user_folder, _mirrors])
    if before.is_dir():
        wanted = [lambda kind, folder: _copy(kind, before, str(before), folder), *wanted]
    for source in wanted:
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
    if not (named := os.environ.get(FOLDER_VARIABLE)):
        raise UnavailableError(f"{FOLDER_VARIABLE} is not set")
    origin = Path(named)
    with suppress(RuntimeError):  # ~NAME where there is no such user: no such folder
        origin = origin.expanduser()
    return _copy(kind, origin / kind if (origin / kind).is_dir() else origin, FOLDER_VARIABLE, folder)


def _scikit_learn(kind: str, folder: Path) -> str:
    spec = find_spec("sklearn")  # not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise UnavailableError("scikit-learn, which has them, is not installed; pip install 'vaeline[pipeline]'")
    return _copy(kind, Path(spec.origin).parent / "datasets" / "data", "scikit-learn", folder)


def download_package(kind: str, folder: Path) -> str:
    """Fill `folder` from the Debian package, downloaded and unpacked into a private folder: that needs no root.

    Returns the package's name; raises UnavailableError where apt-get or dpkg-deb cannot.
    """
    log.info("%s: downloading the Debian package %s with apt-get, into a private folder", kind, PACKAGE)
    with tempfile.TemporaryDirectory(prefix="vaeline-apt-") as name:
        home = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (home / part).mkdir(parents=True)
        options = (f"Dir::State::Lists={home}/lists", f"Dir::Cache={home}/cache", *APT_OPTIONS)
        apt = ("apt-get", "-qq", *(part for option in options for part in ("-o", option)))
        _run(*apt, "update", cwd=home)
        _run(*apt, "download", PACKAGE, cwd=home)
        _run("dpkg-deb", "-x", *map(str, home.glob("*.deb")), "files", cwd=home)
        unpacked = next(home.glob(f"files/**/{PACKAGE_FILE}"), home).parent
        return _copy(kind, unpacked, f"the Debian package {PACKAGE}, downloaded", folder)


def _run(*command: str, cwd: Path) -> None:
    """Run a command, which is killed when it takes too long or this process is stopped."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd, timeout=APT_SECONDS,
            check=False, env=os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {getattr(error, 'strerror', None) or error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if line.startswith("E: ")), lines[0])
        raise UnavailableError(f"{command[0]}: {reason.removeprefix('E: ')}")


def _copy(kind: str, origin: Path, name: str, folder: Path) -> str:
    """Copy the set's files, packed or not, from a folder; returns what to call that folder."""
    source = f"{origin} ({name})"
    for item in PUBLIC_SETS[kind].items:
        both = (origin / item.name, origin / f"{item.name}.gz")
        paths = [path for path in both if path.is_file() and os.access(path, os.R_OK)]
        if not paths:
            raise UnavailableError(f"{source}: holds no {item.name} or {item.name}.gz that can be read")
        try:
            with paths[0].open("rb") as file:
                store(file, item, folder)
        except UnavailableError as reason:
            raise UnavailableError(f"{source}: {reason}") from None
    return source


def _mirrors(kind: str, folder: Path) -> str:
    import requests
    from urllib3.exceptions import HTTPError

    log.info("%s: asking torchvision for its mirrors", kind)
    reasons, headers = [], {"User-Agent": "vaeline", "Accept-Encoding": "identity"}
    for mirror in torchvision_mirrors(kind):
        address = next(iter(mirror.values())).rpartition("/")[0]
        try:
            for item in PUBLIC_SETS[kind].items:
                with requests.get(mirror[item.name], stream=True, timeout=TIMEOUT_S, headers=headers) as answer:
                    answer.raise_for_status()
                    answer.raw.auto_close = False  # a gzip reads once more at the end
                    store(io.BufferedReader(answer.raw, BLOCK), item, folder)
            return f"torchvision's mirror {address}"
        except (UnavailableError, requests.RequestException, HTTPError) as error:
            cause = error.args[0] if error.args else error
            reasons.append(f"{address}: {getattr(cause, 'reason', None) or cause}")
    raise UnavailableError("; ".join(reasons))


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
