"""Public data sets: the sources of one, tried in order until one gives the pinned bytes."""

import io
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def fetch_public(kind: str, folder: Path) -> None:
    """Fill `folder` with the files of the public data set `kind`, each checked against its SHA-256.

    The order: a folder the user names by VAELINE_DATA_DIR; for fashion-mnist the Debian package's folder;
    torchvision's mirrors; for fashion-mnist the Debian package, downloaded and unpacked without root.
    The log names the one used. Raises TransientError listing what was tried where none can be reached.
    """
    sources = [_user_folder, _mirrors]
    if kind == "fashion-mnist":
        sources = [_user_folder, _installed_package, _mirrors, download_package]
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
    if not (named := os.environ.get(FOLDER_VARIABLE)):
        raise UnavailableError(f"{FOLDER_VARIABLE} is not set")
    origin = Path(named).expanduser()
    return _copy(kind, origin / kind if (origin / kind).is_dir() else origin, FOLDER_VARIABLE, folder)


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
        _output(*apt, "update", cwd=home)
        _output(*apt, "download", PACKAGE, cwd=home)
        _output("dpkg-deb", "-x", *map(str, home.glob("*.deb")), "files", cwd=home)
        unpacked = next(home.glob(f"files/**/{PACKAGE_FILE}"), home).parent
        return _copy(kind, unpacked, f"the Debian package {PACKAGE}, downloaded", folder)


def _installed_package(kind: str, folder: Path) -> str:
    try:
        files = _output("dpkg", "-L", PACKAGE).splitlines()
        origin = next(Path(file).parent for file in files if file.endswith(f"/{PACKAGE_FILE}"))
    except (UnavailableError, StopIteration):
        raise UnavailableError(f"package {PACKAGE} is not installed") from None
    return _copy(kind, origin, f"the Debian package {PACKAGE}", folder)


def _output(*command: str, cwd: Path | None = None) -> str:
    """Output of a command, which is killed when it takes too long or this process is stopped."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd, timeout=APT_SECONDS,
            check=False, env=environment,
        )  # fmt: skip
    except OSError as error:
        raise UnavailableError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]}: took more than {APT_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if line.startswith("E: ")), lines[0])
        raise UnavailableError(f"{command[0]}: {reason.removeprefix('E: ')}")
    return done.stdout


def _copy(kind: str, origin: Path, name: str, folder: Path) -> str:
    """Copy the set's files, packed or not, from a folder; returns what to call that folder."""
    source = f"{origin} ({name})"
    for item in PUBLIC_SETS[kind].items:
        paths = [path for path in (origin / item.name, origin / f"{item.name}.gz") if os.access(path, os.R_OK)]
        if not paths:
            raise UnavailableError(f"{source}: holds no {item.name} or {item.name}.gz that can be read")
        try:
            with paths[0].open("rb") as file:
                store(file, item, folder)
        except UnavailableError as reason:
            raise UnavailableError(f"{source}: {reason}") from None
    return source


def _mirrors(kind: str, folder: Path) -> str:
    log.info("%s: asking torchvision for its mirrors", kind)
    reasons = []
    for mirror in torchvision_mirrors(kind):
        address = next(iter(mirror.values())).rpartition("/")[0]
        try:
            for item in PUBLIC_SETS[kind].items:
                with _answer("GET", mirror[item.name]) as response:
                    store(io.BufferedReader(response.raw, BLOCK), item, folder)
            return f"torchvision's mirror {address}"
        except UnavailableError as reason:
            reasons.append(f"{address}: {reason}")
    raise UnavailableError("; ".join(reasons))


def open_mirror(kind: str) -> str | None:
    """The address of the first mirror that answers, or None."""
    for mirror in torchvision_mirrors(kind):
        url = next(iter(mirror.values()))
        try:
            with _answer("HEAD", url):
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


@contextmanager
def _answer(method: str, url: str) -> Iterator[Any]:
    """A server's answer, its body not read yet; raises UnavailableError, also for what fails while it is read."""
    import requests
    from urllib3.exceptions import HTTPError

    headers = {"User-Agent": "vaeline", "Accept-Encoding": "identity"}
    try:
        with requests.request(method, url, stream=True, timeout=TIMEOUT_S, headers=headers) as response:
            response.raise_for_status()
            response.raw.auto_close = False  # a gzip reads once more at the end
            yield response
    except (requests.RequestException, HTTPError) as error:
        cause = error.args[0] if error.args else error
        raise UnavailableError(str(getattr(cause, "reason", None) or cause)) from None
