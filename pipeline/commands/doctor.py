"""`vaeline doctor`: checks of what a run needs, each with how to fix it (`dvc doctor`, `mlflow doctor` check those)."""

import os
import shutil
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from pipeline.services.environment import prepare_prefect
from vaeline.command.program import OWN
from vaeline.config import read_params
from vaeline.errors import UserError, redact
from vaeline.io.git import DUBIOUS_OWNERSHIP, TRUST_COMMAND
from vaeline.io.git import git as run_git
from vaeline.io.machine import cores
from vaeline.io.workspace import Workspace, expanded

GIGABYTE = 1e9
ENOUGH, LEAST = 5 * GIGABYTE, 1 * GIGABYTE  # free disk space

Finding = tuple[Literal["ok", "warn", "fail"], str]  # what was found, "; fix: " and how to fix it


def examine(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    """Level, name and finding of each check, as soon as it is known; a check that raises has failed."""
    for check in (python, git, dvc, params, data, tracking, prefect, device, disk):
        try:
            level, found = check(workspace)
        except (UserError, OSError) as error:  # a path that is too long, or that this user may not read
            level, found = "fail", str(error).replace("\n", "; ")
        yield level, check.__name__, found


def python(workspace: Workspace) -> Finding:
    """The interpreter, and whether `python`, as DVC's stages call it, is the same one."""
    here, found = Path(sys.executable), shutil.which("python")
    text = f"{sys.version.split()[0]} at {here}"
    if found is None or Path(found).parent.resolve() != here.parent.resolve():
        return "warn", f"{text}, but `python` is {found}; fix: . {here.parent}/activate"
    return "ok", text


def git(workspace: Workspace) -> Finding:
    """Git, and a repository around the workspace."""
    try:
        return "ok", f"repository {run_git(workspace.root, 'rev-parse', '--show-toplevel')}"
    except UserError as error:
        fix = "install git and work in a clone: `git clone`, or `git init` in an unpacked archive"
        if DUBIOUS_OWNERSHIP in str(error):
            fix = f"{TRUST_COMMAND} {workspace.repository}"
        return "fail", f"{error}; fix: {fix}"


def dvc(workspace: Workspace) -> Finding:
    """What DVC cannot read, and empty folders in its run cache."""
    from pipeline.services.dvc_command import copies_fault, empty_runs, stale_stages

    try:
        stale, empty = sorted(stale_stages(workspace, patience=5)), empty_runs(workspace)
    except UserError as error:
        fix = OWN if "Permission denied" in str(error) else "git checkout .dvc dvc.yaml dvc.lock"
        raise UserError(str(error) if "correct DVC's settings" in str(error) else f"{error}; fix: {fix}") from None
    if empty:
        fix = f"find {empty[0].parents[1]} -type d -empty -delete"
        return "fail", f"{empty[0]} is empty, left by a DVC that was killed: `dvc repro` fails at it; fix: {fix}"
    if fault := copies_fault(workspace):
        return "warn", f"{fault}; fix: work in a folder with an ASCII name"
    return "ok", f"to do: {', '.join(stale)}" if stale else "all stages up to date"


def params(workspace: Workspace) -> Finding:
    """Every key of params.yaml."""
    read_params(workspace.params)
    return "ok", f"{workspace.params} is valid"


def data(workspace: Workspace) -> Finding:
    """The source that params.yaml names: here already, or files that are there."""
    from vaeline.data.sources.catalogue import PUBLIC_SETS
    from vaeline.data.sources.public import FOLDER_VARIABLE

    source = read_params(workspace.params).data.source
    kind, named, fix = source.kind, getattr(source, "path", None), "correct data.source.path in params.yaml"
    if kind in PUBLIC_SETS:
        if all((workspace.raw / item.name).is_file() for item in PUBLIC_SETS[kind].items):
            return "ok", f"{kind}: already in {workspace.raw}"
        named, fix = os.environ.get(FOLDER_VARIABLE), f"correct or unset {FOLDER_VARIABLE}"
    if not named:
        return "ok", f"{kind}: {'the stage fetch brings it' if kind in PUBLIC_SETS else 'needs no file'}"
    path = expanded(named, kind)
    found = path.is_file() if kind == "npz" else path.is_dir()
    return ("ok", f"{kind}: {path}") if found else ("fail", f"{kind}: {path} is missing; fix: {fix}")


def tracking(workspace: Workspace) -> Finding:
    """The MLflow store: a sqlite file that is whole and can be written, or a server that answers."""
    from vaeline.tracking.connection import SQLITE, check_store, connect, usable_uri
    from vaeline.tracking.outbox import Outbox

    uri = usable_uri(workspace)
    check_store(workspace)
    if not uri.startswith(SQLITE):
        try:
            connect(workspace)
        except UserError as error:
            raise UserError(f"{error}; fix: start that server, or unset MLFLOW_TRACKING_URI") from None
        return "ok", f"{redact(uri)} answers"
    path = Path(uri.removeprefix(SQLITE))
    if not path.exists():
        return "ok", f"{path} (made by the first run)"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            verdict = database.execute("pragma quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        return "fail", f"{path}: {verdict}; fix: restore it from a backup, or move it away: a new, empty one is made"
    if unsent := sum(not run.is_sent() for run in Outbox(workspace).runs()):
        return "warn", f"{path}, {unsent} runs not wholly sent; fix: vaeline sync"
    return "ok", str(path)


def prefect(workspace: Workspace) -> Finding:
    """Prefect's profile, and its server, where one is configured."""
    prepare_prefect(workspace)
    if "PREFECT_API_URL" not in os.environ:
        return "ok", "a temporary server for each run"
    api = redact(os.environ["PREFECT_API_URL"])
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=5) as answer:  # needs no password
            if answer.read(5) == b"true":
                return "ok", f"{api} answers"
            return "fail", f"{api} answers, but not as Prefect's API does; fix: correct PREFECT_API_URL"
    except (OSError, ValueError, HTTPException) as error:
        return "fail", f"{api} does not answer: {error}; fix: start that server, or unset PREFECT_API_URL"


def device(workspace: Workspace) -> Finding:
    """The device that networks are computed on."""
    import torch

    from vaeline.training.device import pick_device

    chosen, setting = pick_device(), os.environ.get("VAELINE_DEVICE", "auto")
    kind = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{cores()} cores"
    return "ok", f"{chosen} (VAELINE_DEVICE={setting}), torch {torch.__version__}, {kind}"


def disk(workspace: Workspace) -> Finding:
    """Free space where outputs, DVC's cache and the tracking store grow."""
    folder = workspace.repository
    if not os.access(folder, os.W_OK):
        return "fail", f"{folder} cannot be written; fix: {OWN}"
    free = shutil.disk_usage(folder).free
    found = f"{free / GIGABYTE:.1f} GB free at {folder}"
    if free < ENOUGH:
        return "fail" if free < LEAST else "warn", f"{found}; fix: free some: `dvc gc -w`, `mlflow gc`"
    return "ok", found
