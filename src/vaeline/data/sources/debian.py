"""Fashion-MNIST from Debian's package, installed or not: apt-get and dpkg-deb need no root for this."""

import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from vaeline.data.sources.catalogue import Item
from vaeline.data.sources.download import UnavailableError, store
from vaeline.io.progress import Progress, progress

PACKAGE = "dataset-fashion-mnist"
PACKAGE_BYTES = 30_900_652  # for the progress bar only
APT_SECONDS = 600
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def installed_folder() -> Path:
    """The folder of the installed package; raises UnavailableError where it is not installed."""
    try:
        listing = subprocess.run(
            ["dpkg", "-L", PACKAGE], capture_output=True, text=True, timeout=20, check=True, env=_environment()
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
        _store_members(packages[0], {item.name: item for item in items}, folder)


def _apt(home: Path, *action: str) -> None:
    """Run apt-get with state and cache of its own; shows its progress."""
    options = (
        f"Dir::State::Lists={home}/lists",
        f"Dir::Cache={home}/cache",
        "APT::Status-Fd=1",
        "APT::Sandbox::User=",  # as root it would drop to a user that cannot write into `home`
        "Acquire::Retries=1",
        "Acquire::http::Timeout=15",
        "Acquire::https::Timeout=15",
        "Acquire::Languages=none",
    )
    command = ["apt-get", "-qq", *(part for option in options for part in ("-o", option)), *action]
    with tempfile.TemporaryFile("w+") as complaints:
        try:
            code = _run(command, home, complaints.fileno(), PACKAGE_BYTES if "download" in action else 0)
        except OSError as error:
            raise UnavailableError(f"apt-get: {error.strerror}") from None
        complaints.seek(0)
        if code != 0:
            last = [line.strip() for line in complaints if line.startswith("E:")][:1] or [f"exit code {code}"]
            raise UnavailableError(f"apt-get {action[0]}: {last[0].removeprefix('E: ')}")


def _run(command: list[str], home: Path, errors: int, total: int) -> int:
    """Run apt-get, following the percentages that it reports; killed when it takes too long or we are stopped."""
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=home,
            env=_environment(),
        ) as process,
        progress(PACKAGE, total, "bytes", quiet=not total) as bar,
    ):
        patience = threading.Timer(APT_SECONDS, process.kill)
        patience.start()
        try:
            _follow(process.stdout or (), total, bar)
        except BaseException:
            process.kill()
            raise
        finally:
            patience.cancel()
    return process.returncode


def _follow(lines: Iterable[str], total: int, bar: Progress) -> None:
    for line in lines:
        if match := re.match(r"dlstatus:[^:]*:([\d.]+):", line):
            bar.update(int(float(match[1]) * total / 100))


def _store_members(package: Path, items: dict[str, Item], folder: Path) -> None:
    """Store the files of the package that are `items`; nothing else of it touches the disk."""
    missing = set(items)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name.removesuffix(".gz")
                    if name in missing and (source := archive.extractfile(member)):
                        store(source, items[name], folder, packed=member.name.endswith(".gz"))
                        missing.remove(name)
        except tarfile.TarError as error:
            raise UnavailableError(f"{package.name}: {error}") from None
        finally:
            process.stdout.read()  # lets dpkg-deb end quietly
    if missing:
        raise UnavailableError(f"{package.name}: holds no {', '.join(sorted(missing))}")


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}
