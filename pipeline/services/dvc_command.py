"""DVC seen from outside: the stages of `dvc.yaml` in order, which of them are stale, and `dvc repro` of one.

DVC decides what is computed; nothing here caches, compares or skips on its own knowledge.
"""

import graphlib
import json
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline.services.child_processes import DETOUR, spawn, stop
from vaeline.errors import TRY_AGAIN, UserError
from vaeline.io.yaml_config import read_yaml

Log = Callable[[str], None]
Outcome = Literal["ran", "restored", "cached"]
DVC = ("dvc", "--wait-for-lock")
LOCAL_SOURCES = {"folder", "npz"}  # outside the repository, where DVC cannot see a change
# what DVC says after each stage about git and remotes
BUSY = re.compile(r"Unable to acquire lock|'.*' is busy, it is being blocked by|failed to lock")
TRANSIENT = re.compile(rf"{BUSY.pattern}|exited with {TRY_AGAIN}\b")
NO_ENTRY = "join() argument must be str"  # DVC's words at an empty folder of its run cache, see `empty_runs`
EXPERIMENT = re.compile(r"Ran experiment\(s\): (\S+)")
MENDING = {  # DVC writes both in place: killed meanwhile, it leaves half of one and cannot read it again
    "dvc.lock": "`git checkout dvc.lock`, or delete it, and run again: finished stages come from DVC's cache",
    ".dvc/tmp/rwlock": "delete it, when no DVC is at work here, and run again",
}
ADVICE = re.compile(r"To track the changes with git|\s+git add |To enable auto staging|\s+dvc config |Use `dvc push`")


class StageError(UserError):
    """A stage that did not end well; the message is its own one line."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient  # a server or remote that is away, a lock: the same may do later


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml and the stages whose outputs it reads."""

    name: str
    description: str
    upstream: tuple[str, ...]


def read_stages(path: Path = Path("dvc.yaml")) -> list[Stage]:
    """The stages of dvc.yaml, each after everything it depends on; raises UserError where they form a circle."""
    found: dict[str, dict[str, Any]] = read_yaml(path)["stages"]
    outputs = {name: [*_paths(s, "outs"), *_paths(s, "metrics"), *_paths(s, "plots")] for name, s in found.items()}
    upstream = {
        name: tuple(
            other
            for other, outs in outputs.items()
            if other != name and any(_overlap(dep, out) for dep in _paths(stage, "deps") for out in outs)
        )
        for name, stage in found.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(upstream).static_order())
    except graphlib.CycleError as error:
        raise UserError(f"{path}: stages depend on each other in a circle: {' -> '.join(error.args[1])}") from None
    return [Stage(name, found[name].get("desc", ""), upstream[name]) for name in order]


def _paths(stage: Mapping[str, Any], section: str) -> list[PurePosixPath]:
    """The paths of a section, whose entries are either a path or `{path: options}`."""
    return [PurePosixPath(e if isinstance(e, str) else next(iter(e))) for e in stage.get(section, [])]


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def stale_stages(patience: float = 60.0) -> set[str]:
    """The stages that DVC finds changed by themselves (what follows from them is not told).

    Another DVC, such as one that takes in what its last stage wrote, is waited for as long as `patience` seconds:
    --wait-for-lock waits for one of DVC's two locks only. Raises UserError with DVC's words.
    """
    deadline = time.monotonic() + patience
    while (done := _status()).returncode and BUSY.search(done.stderr) and time.monotonic() < deadline:
        time.sleep(0.5)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        if BUSY.search(done.stderr):
            raise UserError(f"dvc status: {' '.join(lines).removeprefix('ERROR: ')}")
        raise UserError(_with_mending(f"dvc status: {'; '.join(errors or lines[:3])}"))
    return set(json.loads(done.stdout))


def _status() -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*DVC, "status", "--json"], capture_output=True, text=True, check=False)


def _with_mending(told: str) -> str:
    """DVC's words, with what to do where it stumbles over what a killed DVC left half-written."""
    return "; ".join([told, *(f"{name} is torn: {mending}" for name, mending in MENDING.items() if name in told)])


def always_stale(params: Path = Path("params.yaml")) -> set[str]:
    """The stages to run whatever DVC says: fetch, where the data are files that DVC does not watch."""
    content = read_yaml(params)
    return {"fetch"} if content["data"]["source"]["kind"] in LOCAL_SOURCES else set()


def reproduce(stage: str, log: Log, extra_env: Mapping[str, str], force: bool = False) -> Outcome:
    """`dvc repro --single-item`, its output to `log` as it comes. Raises StageError with the stage's own words."""
    command = ["repro", "--single-item", *(["--force"] if force else []), stage]
    lines = _run(command, log, extra_env, f"stage '{stage}'")
    return next((found for line in lines if (found := _outcome(stage, line))), "ran")


def run_experiment(overrides: Sequence[str], log: Log, extra_env: Mapping[str, str]) -> str:
    """`dvc exp run --temp` with these changes (`key=value`) to params.yaml; the experiment's name.

    It runs in a copy of the repository: the workspace and its params stay as they are. Raises StageError.
    """
    changes = [argument for change in overrides for argument in ("-S", change)]
    lines = _run(["exp", "run", "--temp", *changes], log, extra_env, "the experiment")
    return next((found[1] for line in lines if (found := EXPERIMENT.match(line))), "")


def stream(command: Sequence[str], environment: Mapping[str, str], log: Log) -> tuple[int, deque[str]]:
    """Run DVC in its own process group, telling what it says as it comes; its exit code and its last lines.

    Whatever ends this call early (an error, Ctrl-C, SIGTERM) ends the group; should this process be killed,
    Linux does.
    """
    tail: deque[str] = deque(maxlen=200)
    process = spawn(command, environment)
    try:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line and not ADVICE.match(line):
                log(line)
                tail.append(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            stop(process)
        if process.stdout:
            process.stdout.close()
    return code, tail


def run_attached(command: Sequence[str]) -> int:
    """Run a command on this terminal; its exit code. It ends with this process, and gets its signals."""
    process = subprocess.Popen([*DETOUR, str(os.getpid()), str(int(signal.SIGTERM)), *command])
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the terminal sent to both
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _run(command: Sequence[str], log: Log, extra_env: Mapping[str, str], what: str) -> list[str]:
    """A DVC command; the last of what it said. Raises StageError."""
    env = {**os.environ, **extra_env, "PYTHONUNBUFFERED": "1"}
    code, tail = stream([*DVC, *command], env, log)
    if code and any(NO_ENTRY in line for line in tail) and (empty := empty_runs()):
        for folder in empty:
            log(f"{folder}: left empty by a DVC that was killed; removed")
            folder.rmdir()
        code, tail = stream([*DVC, *command], env, log)
    if code:
        transient = any(TRANSIENT.search(line) for line in tail)
        raise StageError(_with_mending(f"{what} failed: {reason(tail, code)}"), transient)
    return list(tail)


def cache_folder() -> Path:
    """DVC's cache. Raises UserError with DVC's words."""
    done = subprocess.run(["dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"dvc cache dir: {complaint(done.stderr)}")
    return Path(done.stdout.strip())


def empty_runs() -> list[Path]:
    """The folders of DVC's run cache that hold nothing: killed in between, DVC makes one and fails at it ever after."""
    return [folder for folder in (cache_folder() / "runs").glob("*/*/") if not any(folder.iterdir())]


def _outcome(stage: str, line: str) -> Outcome | None:
    """What DVC's own message about a stage means."""
    if line.startswith(f"Stage '{stage}' didn't change, skipping"):
        return "cached"
    if line.startswith(f"Stage '{stage}' is cached - skipping run, checking out outputs"):
        return "restored"
    return None


def complaint(said: str) -> str:
    """What Git (`fatal:`, advice may follow it) or DVC found wrong, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["failed"]
    return next((line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")), lines[-1])


def reason(tail: Sequence[str], code: int) -> str:
    """What says most: the stage's `error:` lines, else a traceback's last line, else DVC's `ERROR:`, else the code."""
    if told := [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]:
        return "\n".join(told)
    for pattern in (r"[\w.]+(Error|Exception)\b", r"ERROR: "):
        if lines := [line for line in tail if re.match(pattern, line)]:
            return lines[-1].removeprefix("ERROR: ")
    return f"exit code {code}{f': {tail[-1]}' if tail else ''}"
