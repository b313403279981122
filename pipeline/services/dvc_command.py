"""DVC as a command: the stages of `dvc.yaml`, what they need, which are stale, `dvc repro` of one; clones to run it in.

DVC decides what is computed; nothing here caches, compares or skips.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, Literal

from pipeline.services.child_processes import spawn, stop
from vaeline.errors import TRY_AGAIN, UserError
from vaeline.io.git import git, try_git
from vaeline.io.safe_read import named
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import read_yaml

Log = Callable[[str], None]
Outcome = Literal["ran", "restored", "cached"]
DVC = ("dvc", "--wait-for-lock")
LOCAL_SOURCES = ("folder", "npz")  # outside the repository, where DVC cannot see a change
BUSY = re.compile(r"Unable to acquire lock|'.*' is busy, it is being blocked by|failed to lock")
TRANSIENT = re.compile(rf"{BUSY.pattern}|exited with {TRY_AGAIN}\b")
EMPTY_RUN = "join() argument must be str"  # DVC's message about an empty folder in its run cache, see `empty_runs`
TORN_FILES = {  # DVC writes both in place: killed meanwhile, it leaves half of one and cannot read it again
    "dvc.lock": "`git checkout dvc.lock`, or delete it, and run again: finished stages come from DVC's cache",
    ".dvc/tmp/rwlock": "delete it, when no DVC is at work here, and run again",
}
ADVICE = re.compile(r"To track the changes with git|\s+git add |To enable auto staging|\s+dvc config |Use `dvc push`")


class StageError(UserError):
    """A failed stage; `transient` where the same may succeed later: a server or remote is away, a lock is taken."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def read_stages(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """The stages' sections of dvc.yaml, in its order, in which each comes after what it reads."""
    content = read_yaml(path := workspace.root / "dvc.yaml")
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError(f"{path}: stages: must be sections with keys; fix: git checkout {path}")
    return stages


def outputs(stage: dict[str, Any]) -> list[str]:
    """Paths that a stage of dvc.yaml writes."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _refuse_endless_files(workspace: Workspace) -> None:
    """Raise UserError for a named pipe or a device among the files of stages, which DVC would read for ever."""
    read = {path for stage in read_stages(workspace).values() for path in (*stage.get("deps", []), *outputs(stage))}
    for place in sorted(str(workspace.root / path) for path in (*read, "params.yaml", "dvc.lock")):
        inside = (f"{folder}/{name}" for folder, _, names in os.walk(place) for name in names)
        for path in (place, *inside):
            if not isfile(path) and exists(path) and not isdir(path):  # noqa: PTH110, PTH112, PTH113
                raise UserError(f"{named(Path(path))}: is a pipe or a device, which DVC would read for ever; delete it")


def stale_stages(workspace: Workspace, patience: float = 60.0) -> set[str]:
    """The stages that DVC finds changed by themselves, without those that read what they write.

    A DVC at work is waited for as long as `patience` seconds, for --wait-for-lock waits for one of DVC's two locks
    only. Raises UserError with DVC's message, and for files that it would read for ever.
    """
    _refuse_endless_files(workspace)
    deadline = time.monotonic() + patience
    while (done := run_dvc(workspace, *DVC, "status", "--json")).returncode:
        if not BUSY.search(done.stderr) or time.monotonic() > deadline:
            raise _refusal("dvc status", done)
        time.sleep(0.5)
    return set(json.loads(done.stdout))


def always_stale(workspace: Workspace) -> set[str]:
    """The stages to run whatever DVC finds: fetch, where the data are files that DVC does not watch."""
    try:
        params = read_yaml(workspace.params)
        kind, train = params["data"]["source"]["kind"], params.get("train", {})
        copied = train.get("init", {}).get("kind") == "diffusers" or train.get("perceptual")
    except (TypeError, LookupError, AttributeError):
        raise UserError(f"{workspace.params}: data.source.kind: missing") from None
    return {"fetch"} if kind in LOCAL_SOURCES or copied else set()


def needed_stages(workspace: Workspace, only: str = "") -> dict[str, set[str]]:
    """The stages in the order of dvc.yaml, each with itself and all those that it needs; of `only`, just these.

    Raises UserError where there is no such stage.
    """
    stages, found = read_stages(workspace), dict[str, set[str]]()
    if only and only not in stages:
        raise UserError(f"--only: found {only!r}, allowed: {', '.join(stages)}")
    for name, stage in stages.items():  # each comes after what it reads
        before = [other for other in found if _overlap(stage.get("deps", []), outputs(stages[other]), "/")]
        found[name] = {name}.union(*(found[other] for other in before))
    return {name: needs for name, needs in found.items() if not only or name in found[only]}


def stages_to_run(workspace: Workspace, only: str, force: bool, changed: Iterable[str] = ()) -> list[str]:
    """The stages, at most those that `only` needs, that would run after a change of the key paths `changed`."""
    stages, needs = read_stages(workspace), needed_stages(workspace, only)
    stale = set(stages) if force else stale_stages(workspace) | always_stale(workspace)
    stale |= {name for name, stage in stages.items() if _overlap(stage.get("params", []), changed, ".")}
    return [name for name in needs if needs[name] & stale]


def _overlap(paths: Iterable[str], others: Iterable[str], separator: str) -> bool:
    """Whether one of the paths is, contains or lies in one of the others."""
    ends = [(f"{path}{separator}", f"{other}{separator}") for path in paths for other in others]
    return any(a.startswith(b) or b.startswith(a) for a, b in ends)


def reproduce(workspace: Workspace, stage: str, log: Log, env: Mapping[str, str], force: bool = False) -> Outcome:
    """`dvc repro --single-item`, its output to `log` as it comes. Raises StageError with the stage's error lines."""
    command = [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage]
    code, tail = stream(command, {**os.environ, **env, "PYTHONUNBUFFERED": "1"}, log, workspace.root)
    if code and any(EMPTY_RUN in line for line in tail) and (empty := empty_runs(workspace)):
        for folder in empty:
            log(f"{folder}: left empty by a DVC that was killed; removed")
            folder.rmdir()
        return reproduce(workspace, stage, log, env, force)
    if code:
        transient = any(TRANSIENT.search(line) for line in tail)
        raise StageError(_with_fix(f"stage '{stage}' failed: {error_line(tail, code)}"), transient)
    if any(line.startswith(f"Stage '{stage}' didn't change, skipping") for line in tail):
        return "cached"
    restored = f"Stage '{stage}' is cached - skipping run, checking out outputs"
    return "restored" if any(line.startswith(restored) for line in tail) else "ran"


def stream(command: Sequence[str], env: Mapping[str, str], log: Log, cwd: Path | None = None) -> tuple[int, list[str]]:
    """Exit code and last lines of a DVC command, its output to `log` as it comes.

    It runs in a process group of its own, which ends with this call (an error, Ctrl-C, SIGTERM) and with this process.
    """
    tail: deque[str] = deque(maxlen=200)
    process = spawn(command, env, cwd=cwd)
    assert process.stdout is not None
    with process.stdout:
        try:
            for line in map(str.rstrip, process.stdout):
                if line and not ADVICE.match(line):
                    log(line)
                    tail.append(line)
            return process.wait(), list(tail)
        finally:
            if process.poll() is None:
                stop(process)


def run_dvc(workspace: Workspace, *command: str) -> "subprocess.CompletedProcess[str]":
    """A DVC command that has ended, in the workspace, its output as text."""
    return subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)


def cache_folder(workspace: Workspace) -> Path:
    """DVC's cache. Raises UserError with DVC's message."""
    if (done := run_dvc(workspace, "dvc", "cache", "dir")).returncode:
        raise _refusal("dvc cache dir", done)
    return workspace.root / done.stdout.strip()


def empty_runs(workspace: Workspace) -> list[Path]:
    """Empty folders of DVC's run cache: a DVC killed between making and filling one leaves it, and later ones fail."""
    return [folder for folder in (cache_folder(workspace) / "runs").glob("*/*/") if not any(folder.iterdir())]


def error_line(lines: Sequence[str], code: int) -> str:
    """The stage's `error:` lines, else a traceback's last line, else DVC's `ERROR:`, else the exit code."""
    if errors := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]:
        return "\n".join(errors)
    for pattern in (r"[\w.]+(Error|Exception)\b", r"ERROR: "):
        if errors := [line for line in lines if re.match(pattern, line)]:
            return errors[-1].removeprefix("ERROR: ")
    return f"exit code {code}{f': {lines[-1]}' if lines else ''}"


def _refusal(what: str, done: "subprocess.CompletedProcess[str]") -> UserError:
    return UserError(_with_fix(f"{what}: {' '.join(done.stderr.replace('ERROR: ', '').split())}"))


def copies_fault(workspace: Workspace) -> str:
    """Why DVC cannot run experiments in copies of this folder; empty where it can."""
    if str(workspace.root.resolve()).isascii():
        return ""
    return "dvc exp run --temp and --queue fail where the folder's name is not all ASCII; vaeline run -S does the same"


def _with_fix(message: str) -> str:
    """The message, with what to do about a file that it names and that a killed DVC left half-written, or settings."""
    if "config file error" in message:
        folders = [Path(".dvc"), Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR", "~/.config/dvc")).expanduser()]
        files = [str(path) for folder in folders for path in sorted(folder.glob("config*")) if path.is_file()]
        return f"{message}; correct DVC's settings: {' or '.join(files)}"
    return "; ".join([message, *(f"{name} is torn: {fix}" for name, fix in TORN_FILES.items() if name in message)])


def make_clone(root: Path, folder: Path, commit: str, *, stash: str = "", cache: Path | None = None) -> Path:
    """Clone `folder` of the repository around `root` at `commit`, with `stash` applied; returns its folder of dvc.yaml.

    Git's objects are shared. With DVC's folder `cache`, that is shared too and dvc.lock is copied, tracked or not, so
    that DVC knows what is done; without, the clone has a cache of its own. Raises UserError where Git fails and where
    the commit has no dvc.yaml.
    """
    places = git(root, "rev-parse", "--show-toplevel", "--show-prefix", "--git-path", "objects")
    top, prefix, objects = places.split("\n")
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "-q", "--shared", "--no-checkout", top, str(folder))
    # --shared does just this, but not for a shallow repository
    alternates = folder / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{(root / objects).resolve()}\n", encoding="utf-8")
    git(folder, "-c", "core.hooksPath=/dev/null", "checkout", "-q", "--detach", commit)
    if stash:
        git(folder, "stash", "apply", "-q", stash)
    for name, default in (("user.name", "vaeline"), ("user.email", "vaeline@localhost")):  # DVC commits experiments
        git(folder, "config", name, try_git(root, "config", name) or default)
    project = folder / prefix
    if not (project / "dvc.yaml").is_file():
        raise UserError(f"commit {commit} has no {prefix}dvc.yaml")
    if cache and (root / "dvc.lock").exists():
        shutil.copy(root / "dvc.lock", project / "dvc.lock")
    local = configparser.ConfigParser(interpolation=None)
    if cache:
        local.read(root / ".dvc" / "config.local", encoding="utf-8")
    links = dict(local["cache"]) if "cache" in local else {}  # how this machine links files
    place = str(cache or project / ".dvc" / "cache")
    links["dir"] = f"'{place}'" if '"' in place else f'"{place}"'  # bare, a comma makes a list of it, # a comment
    lines = ["[cache]", *(f"{key} = {value}" for key, value in links.items()), ""]
    (project / ".dvc" / "config.local").write_text("\n".join(lines), encoding="utf-8")
    return project
