"""`vaeline doctor`: checks of what a run needs, each with how to fix it; what DVC and MLflow check themselves is left
to `dvc doctor` and `mlflow doctor`.
"""

import os
import shutil
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaeline.command.program import OWN
from vaeline.config import Digits, Download, Shapes, read_params
from vaeline.errors import UserError
from vaeline.io.git import DUBIOUS_OWNERSHIP, TRUST_COMMAND
from vaeline.io.git import git as run_git
from vaeline.io.workspace import Workspace

GIGABYTE = 1e9
ENOUGH, LEAST = 5 * GIGABYTE, 1 * GIGABYTE  # free disk space


@dataclass(frozen=True)
class Finding:
    """Result of one check: what was found, and how to fix it."""

    level: Literal["ok", "warn", "fail"]
    name: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.level:<4}  {self.name:<8}  {self.found}{f'; fix: {self.fix}' if self.fix else ''}"


def examine(workspace: Workspace) -> Iterator[Finding]:
    """Findings of every check, each as soon as it is known; a check that raises UserError has failed."""
    for check in (python, git, dvc, params, data, tracking, prefect, device, disk):
        try:
            yield check(workspace)
        except UserError as error:
            yield Finding("fail", check.__name__, str(error).replace("\n", "; "))


def python(workspace: Workspace) -> Finding:
    """The interpreter, and whether `python`, as DVC's stages call it, is the same one."""
    here, found = Path(sys.executable), shutil.which("python")
    text = f"{sys.version.split()[0]} at {here}"
    if found is None or Path(found).parent.resolve() != here.parent.resolve():
        return Finding("warn", "python", f"{text}, but `python` is {found}", f". {here.parent}/activate")
    return Finding("ok", "python", text)


def git(workspace: Workspace) -> Finding:
    """Git, and a repository around the workspace."""
    if shutil.which("git") is None:
        return Finding("fail", "git", "not installed", "sudo apt install git")
    try:
        return Finding("ok", "git", f"repository {run_git(workspace.root, 'rev-parse', '--show-toplevel')}")
    except UserError as error:
        fix = "work in a clone: `git clone`, or `git init` in an unpacked archive"
        if DUBIOUS_OWNERSHIP in str(error):
            fix = f"{TRUST_COMMAND} {workspace.repository}"
        return Finding("fail", "git", str(error).removeprefix("git: "), fix)


def dvc(workspace: Workspace) -> Finding:
    """What DVC cannot read, and empty folders in its run cache."""
    from pipeline.services.dvc_command import empty_runs, stale_stages

    try:
        stale, empty = sorted(stale_stages(workspace, patience=5)), empty_runs(workspace)
    except UserError as error:
        fix = OWN if "Permission denied" in str(error) else "git checkout .dvc dvc.yaml dvc.lock"
        return Finding("fail", "dvc", str(error).replace("\n", "; "), fix)
    if empty:
        found = f"{empty[0]} is empty, left by a DVC that was killed: `dvc repro` fails at it"
        return Finding("fail", "dvc", found, f"find {empty[0].parents[1]} -type d -empty -delete")
    return Finding("ok", "dvc", f"to do: {', '.join(stale)}" if stale else "all stages up to date")


def params(workspace: Workspace) -> Finding:
    """Every key of params.yaml."""
    read_params(workspace.params)
    return Finding("ok", "params", f"{workspace.params} is valid")


def data(workspace: Workspace) -> Finding:
    """The source that params.yaml names: here already, or within reach."""
    try:
        source = read_params(workspace.params).data.source
    except UserError:
        return Finding("fail", "data", "not checked: params.yaml has mistakes", "correct params.yaml")
    if isinstance(source, Digits | Shapes):
        return Finding("ok", "data", f"{source.kind}: needs no file")
    if isinstance(source, Download):
        return _public(source.kind, workspace)
    path = Path(source.path).expanduser()
    if not (path.is_dir() if source.kind == "folder" else path.is_file()):
        return Finding("fail", "data", f"{source.kind}: {path} is missing", "correct data.source.path in params.yaml")
    return Finding("ok", "data", f"{source.kind}: {path}")


def _public(kind: str, workspace: Workspace) -> Finding:
    """A public data set: in data/raw, in a folder of this machine, as a Debian package, or at a mirror."""
    from vaeline.data.sources.catalogue import PUBLIC_SETS
    from vaeline.data.sources.debian import PACKAGE, installed_folder
    from vaeline.data.sources.pinned import UnavailableError
    from vaeline.data.sources.public import FOLDER_VARIABLE, open_mirror

    if all((workspace.raw / item.name).is_file() for item in PUBLIC_SETS[kind].items):
        return Finding("ok", "data", f"{kind}: already in {workspace.raw}")
    if folder := os.environ.get(FOLDER_VARIABLE):
        if Path(folder).expanduser().is_dir():
            return Finding("ok", "data", f"{kind}: {folder} ({FOLDER_VARIABLE})")
        return Finding("fail", "data", f"{FOLDER_VARIABLE}: found {folder}, no folder", f"unset {FOLDER_VARIABLE}")
    debian = kind == "fashion-mnist"
    try:
        if debian:
            return Finding("ok", "data", f"{kind}: {installed_folder()} (Debian package {PACKAGE})")
    except UnavailableError:
        pass
    if mirror := open_mirror(kind):
        return Finding("ok", "data", f"{kind}: {mirror} answers")
    if debian and shutil.which("apt-get"):
        return Finding("warn", "data", f"{kind}: no mirror answers; apt-get is used, for {PACKAGE}")
    fix = f"connect to the network, or set {FOLDER_VARIABLE} to a folder with the files"
    return Finding("fail", "data", f"{kind}: no mirror answers", fix)


def tracking(workspace: Workspace) -> Finding:
    """The MLflow store: a sqlite file that is whole and can be written, or a server that answers."""
    from vaeline.tracking.connection import SQLITE, connect, redact, tracking_uri
    from vaeline.tracking.outbox import Outbox

    uri = tracking_uri(workspace)
    if not uri.startswith(SQLITE):
        try:
            connect(workspace, timeout_s=5, retries=0)
        except UserError as error:
            return Finding("fail", "tracking", str(error), "start that server, or unset MLFLOW_TRACKING_URI")
        return Finding("ok", "tracking", f"{redact(uri)} answers")
    path = Path(uri.removeprefix(SQLITE))
    if not path.exists():
        return Finding("ok", "tracking", f"{path} (made by the first run)")
    if not os.access(path, os.W_OK):
        return Finding("fail", "tracking", f"{path}: cannot be written", OWN)
    if (verdict := _check_database(path)) != "ok":
        fix = f"move {path} away: a new one is made, `vaeline sync` fills it again"
        return Finding("fail", "tracking", f"{path}: {verdict}", fix)
    if unsent := sum(not run.is_sent() for run in Outbox(workspace).runs()):
        return Finding("warn", "tracking", f"{path}, {unsent} runs not wholly sent", "vaeline sync")
    return Finding("ok", "tracking", str(path))


def _check_database(path: Path) -> str:
    """Verdict of sqlite on a file: ok, or what is wrong."""
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            return str(database.execute("pragma quick_check(1)").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error as error:
        return str(error)


def prefect(workspace: Workspace) -> Finding:
    """Prefect's server, where one is configured."""
    from vaeline.tracking.connection import redact

    api = os.environ.get("PREFECT_API_URL")
    if api is None:
        return Finding("ok", "prefect", "a temporary server for each run")
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=5):  # needs no password
            return Finding("ok", "prefect", f"{redact(api)} answers")
    except (OSError, ValueError) as error:  # an HTTPError is an OSError
        fix = "start that server, or unset PREFECT_API_URL"
        return Finding("fail", "prefect", f"{redact(api)} does not answer: {error}", fix)


def device(workspace: Workspace) -> Finding:
    """The device that networks are computed on."""
    import torch

    from vaeline.training.device import pick_device

    chosen = pick_device()
    kind = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{os.cpu_count()} cores"
    setting = os.environ.get("VAELINE_DEVICE", "auto")
    return Finding("ok", "device", f"{chosen} (VAELINE_DEVICE={setting}), torch {torch.__version__}, {kind}")


def disk(workspace: Workspace) -> Finding:
    """Free space where outputs, DVC's cache and the tracking store grow."""
    folder = workspace.repository
    if not os.access(folder, os.W_OK):
        return Finding("fail", "disk", f"{folder} cannot be written", OWN)
    free = shutil.disk_usage(folder).free
    found = f"{free / GIGABYTE:.1f} GB free at {folder}"
    if free < ENOUGH:
        return Finding("fail" if free < LEAST else "warn", "disk", found, "free some: `dvc gc -w`, `mlflow gc`")
    return Finding("ok", "disk", found)
