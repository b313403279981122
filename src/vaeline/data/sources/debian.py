"""Fashion-MNIST from Debian's package, installed or not: apt-get and dpkg-deb need no root for this."""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vaeline.data.sources.catalogue import Item
from vaeline.data.sources.pinned import UnavailableError, store

PACKAGE = "dataset-fashion-mnist"  # 31 MB
APT_SECONDS = 600
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def installed_folder() -> Path:
    """The folder of the installed package; raises UnavailableError where it is not installed."""
    environment = os.environ | ENVIRONMENT
    try:
        listing = subprocess.run(
            ["dpkg", "-L", PACKAGE], capture_output=True, text=True, timeout=20, check=True, env=environment
        ).stdout
    except (OSError, subprocess.SubprocessError):
        raise UnavailableError(f"package {PACKAGE} is not installed") from None
    for line in listing.splitlines():
        if line.endswith("/train-images-idx3-ubyte.gz"):
            return Path(line).parent
    raise UnavailableError(f"package {PACKAGE} holds no train-images-idx3-ubyte.gz")


def unpack_package(items: Iterable[Item], folder: Path) -> None:
    """Download the package into a private folder and store its `items`; raises UnavailableError where apt cannot."""
    with tempfile.TemporaryDirectory(prefix="vaeline-apt-") as name:
        home = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (home / part).mkdir(parents=True)
        _apt(home, "update")
        _apt(home, "download", PACKAGE)
        packages = list(home.glob(f"{PACKAGE}_*.deb"))
        if not packages:
            raise UnavailableError(f"apt-get download {PACKAGE} left no package")
        store_members(packages[0], {item.name: item for item in items}, folder)


def _apt(home: Path, *action: str) -> None:
    """Run apt-get with state and cache of its own; it is killed when it takes too long or this process is stopped."""
    options = (
        f"Dir::State::Lists={home}/lists",
        f"Dir::Cache={home}/cache",
        "APT::Sandbox::User=",  # as root it would drop to a user that cannot write into `home`
        "Acquire::Retries=1",
        "Acquire::http::Timeout=15",
        "Acquire::https::Timeout=15",
        "Acquire::Languages=none",
    )
    command = ["apt-get", "-qq", *(part for option in options for part in ("-o", option)), *action]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=home, timeout=APT_SECONDS,
            check=False, env=os.environ | ENVIRONMENT,
        )  # fmt: skip
    except OSError as error:
        raise UnavailableError(f"apt-get: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"apt-get {action[0]}: took more than {APT_SECONDS} s") from None
    if done.returncode:
        errors = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E:")]
        raise UnavailableError(f"apt-get {action[0]}: {(errors or [f'exit code {done.returncode}'])[0]}")


def store_members(package: Path, items: dict[str, Item], folder: Path) -> None:
    """Store the files of the package that are `items`; nothing else of it is written."""
    missing = set(items)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name.removesuffix(".gz")
                    if name in missing and (source := archive.extractfile(member)):
                        store(source, items[name], folder)
                        missing.remove(name)
        except tarfile.TarError as error:
            raise UnavailableError(f"{package.name}: {error}") from None
        finally:
            process.stdout.read()  # lets dpkg-deb end without an error
    if missing:
        raise UnavailableError(f"{package.name}: holds no {', '.join(sorted(missing))}")
