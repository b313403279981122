"""`vaeline doctor`: what a run needs, checked one by one, each with how to mend it."""

import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaeline.command.program import OWN
from vaeline.config import Digits, Download, Params, Shapes, read_params
from vaeline.errors import UserError
from vaeline.io.git import DUBIOUS_OWNERSHIP, TRUST_COMMAND
from vaeline.io.git import git as run_git
from vaeline.io.workspace import PARAMS, RAW, current_workspace, repository_root

GIGABYTE = 1e9
ROOM, LEAST_ROOM = 5 * GIGABYTE, 1 * GIGABYTE


@dataclass(frozen=True)
class Finding:
    """One checked thing: well, doubtful or missing, what was seen, and how to mend it."""

    level: Literal["ok", "warn", "fail"]
    name: str
    seen: str
    mend: str = ""

    def __str__(self) -> str:
        """One line, with the way to mend under it."""
        line = f"{self.level:<4}  {self.name:<9} {self.seen}"
        return f"{line}\n{'':<16}mend: {self.mend}" if self.mend else line


def examine() -> Iterator[Finding]:
    """Every check in turn; each finding comes as soon as it is known, and none stops the others."""
    checks = (python, git, dvc, params, data_source, tracking, prefect, device, disk)
    for check in checks:
        try:
            yield check()
        except UserError as error:
            yield Finding("fail", check.__name__.replace("_", " "), str(error))


def python() -> Finding:
    """The interpreter, and whether DVC's `python` is the same one."""
    seen = f"{sys.version.split()[0]} at {sys.executable}"
    found = shutil.which("python")
    if found is None or Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        mend = f"for plain `dvc` commands: . {Path(sys.executable).parent}/activate"
        return Finding("warn", "python", f"{seen}, but `python` is {found}", mend)
    return Finding("ok", "python", seen)


def git() -> Finding:
    """Git, and a repository around the working folder: DVC needs both."""
    if shutil.which("git") is None:
        return Finding("fail", "git", "not installed", "sudo apt install git")
    try:
        inside = run_git(Path(), "rev-parse", "--show-toplevel")
    except UserError as error:
        mend = "work in a clone: `git clone`, or `git init` in an unpacked archive"
        if DUBIOUS_OWNERSHIP in str(error):
            mend = f"{TRUST_COMMAND} {repository_root()}"
        return Finding("fail", "git", str(error).removeprefix("git: "), mend)
    return Finding("ok", "git", f"{run_git(Path(), '--version')}, repository {inside}")


def dvc() -> Finding:
    """DVC, its folder, and files it can read: `dvc status` opens dvc.yaml, dvc.lock and the cache."""
    from pipeline.services.dvc_command import empty_runs, stale_stages

    version = importlib.metadata.version("dvc")
    if not (repository_root() / ".dvc").is_dir():
        return Finding("fail", "dvc", f"{version}, no .dvc folder", "git checkout .dvc")
    try:
        stale = sorted(stale_stages(patience=5))
        empty = empty_runs()
    except UserError as error:
        mend = OWN if "Permission denied" in str(error) else "git checkout dvc.yaml dvc.lock"
        return Finding("fail", "dvc", str(error), mend)
    if empty:
        seen = f"{empty[0]} is empty: a DVC that was killed left it, and `dvc repro` fails at it"
        return Finding("fail", "dvc", seen, f"find {empty[0].parents[1]} -type d -empty -delete")
    return Finding("ok", "dvc", f"{version}, " + (f"to do: {', '.join(stale)}" if stale else "all stages up to date"))


def params() -> Finding:
    """params.yaml, every key of it."""
    read_params(PARAMS)
    return Finding("ok", "params", f"{PARAMS} is valid")


def data_source() -> Finding:
    """The source named in params.yaml: here already, or reachable."""
    source = _params_or_skip().data.source
    name = "data"
    if isinstance(source, Digits | Shapes):
        return Finding("ok", name, f"{source.kind}: needs no file")
    if isinstance(source, Download):
        return _public(source.kind)
    path = Path(source.path).expanduser()
    right = path.is_dir() if source.kind == "folder" else path.is_file()
    if not right:
        return Finding("fail", name, f"{source.kind}: {path} is not there", "correct data.source.path in params.yaml")
    return Finding("ok", name, f"{source.kind}: {path}")


def _params_or_skip() -> Params:
    try:
        return read_params(PARAMS)
    except UserError:
        raise UserError("not checked: params.yaml has mistakes") from None


def _public(kind: str) -> Finding:
    """A public data set: in data/raw, in a folder on this machine, at a mirror, or as a Debian package."""
    from vaeline.data.sources.catalogue import PUBLIC_SETS
    from vaeline.data.sources.debian import PACKAGE, installed_folder
    from vaeline.data.sources.download import UnavailableError
    from vaeline.data.sources.public import FOLDER_VARIABLE

    if all((RAW / item.name).is_file() for item in PUBLIC_SETS[kind].items):
        return Finding("ok", "data", f"{kind}: already in {RAW}")
    if folder := os.environ.get(FOLDER_VARIABLE):
        if Path(folder).expanduser().is_dir():
            return Finding("ok", "data", f"{kind}: {folder} ({FOLDER_VARIABLE})")
        return Finding(
            "fail", "data", f"{FOLDER_VARIABLE} names {folder}, which is no folder", f"unset {FOLDER_VARIABLE}"
        )
    try:
        if kind == "fashion-mnist":
            return Finding("ok", "data", f"{kind}: {installed_folder()} (Debian package {PACKAGE})")
    except UnavailableError:
        pass
    if mirror := _open_mirror(kind):
        return Finding("ok", "data", f"{kind}: {mirror} answers")
    if kind == "fashion-mnist" and shutil.which("apt-get"):
        return Finding("warn", "data", f"{kind}: no mirror answers; apt-get will be asked for {PACKAGE}")
    mend = f"connect to the network, or set {FOLDER_VARIABLE} to a folder with the files"
    return Finding("fail", "data", f"{kind}: no mirror answers", mend)


def _open_mirror(kind: str) -> str | None:
    from vaeline.data.sources.download import UnavailableError, open_url
    from vaeline.data.sources.public import torchvision_mirrors

    for mirror in torchvision_mirrors(kind):
        address = next(iter(mirror.values()))
        try:
            open_url(address).close()
        except UnavailableError:
            continue
        return address.rpartition("/")[0]
    return None


def tracking() -> Finding:
    """The MLflow store: a sqlite file that is whole and can be written, or a server that answers."""
    from vaeline.tracking.connection import SQLITE, connect, redact, tracking_uri
    from vaeline.tracking.outbox import all_outboxes

    uri = tracking_uri(current_workspace())
    if not uri.startswith(SQLITE):
        try:
            connect(current_workspace(), timeout_s=5, retries=0)
        except UserError as error:
            return Finding("fail", "tracking", str(error), "start that server, or unset MLFLOW_TRACKING_URI")
        return Finding("ok", "tracking", f"{redact(uri)} answers")
    path = Path(uri.removeprefix(SQLITE))
    if not path.exists():
        return Finding("ok", "tracking", f"{path} (made by the first run)")
    try:
        with sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5) as database:
            verdict = database.execute("pragma quick_check(1)").fetchone()[0]
        database.close()
    except sqlite3.Error as error:
        verdict = str(error)
    if not os.access(path, os.W_OK):
        return Finding("fail", "tracking", f"{path}: cannot be written", OWN)
    if verdict != "ok":
        mend = f"move {path} away: a new one is made, `vaeline sync` fills it again"
        return Finding("fail", "tracking", f"{path}: {verdict}", mend)
    if unsent := sum(1 for spool in all_outboxes(current_workspace()) if not spool.is_sent()):
        return Finding("warn", "tracking", f"{path}, {unsent} runs not wholly sent", "vaeline sync")
    return Finding("ok", "tracking", str(path))


def prefect() -> Finding:
    """Prefect's server, where one is configured."""
    api = os.environ.get("PREFECT_API_URL")
    version = importlib.metadata.version("prefect")
    if api is None:
        return Finding("ok", "prefect", f"{version}, a temporary server for each run")
    done = _said(sys.executable, "-m", "prefect", "version")  # asks the server
    if done.returncode or "Could not connect" in done.stdout + done.stderr:
        return Finding("fail", "prefect", f"{version}, {api} does not answer", "start it, or unset PREFECT_API_URL")
    return Finding("ok", "prefect", f"{version}, {api}")


def device() -> Finding:
    """What the networks are computed on."""
    import torch

    from vaeline.training.device import pick_device

    chosen = pick_device()
    seen = f"{chosen} (VAELINE_DEVICE={os.environ.get('VAELINE_DEVICE', 'auto')}), torch {torch.__version__}"
    if chosen.type == "cuda":
        return Finding("ok", "device", f"{seen}, {torch.cuda.get_device_name(chosen)}")
    return Finding("ok", "device", f"{seen}, {os.cpu_count()} cores")


def disk() -> Finding:
    """Room where outputs, DVC's cache and the tracking store grow."""
    folder = repository_root()
    free = shutil.disk_usage(folder).free
    seen = f"{free / GIGABYTE:.1f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("fail", "disk", f"{folder} cannot be written", OWN)
    if free < ROOM:
        return Finding("fail" if free < LEAST_ROOM else "warn", "disk", seen, "free some: `dvc gc -w`, `mlflow gc`")
    return Finding("ok", "disk", seen)


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
