"""An experiment as a process: `dvc exp run` in a clone of its own, brought back into the repository when it is done.

Not `dvc exp run --temp`: its one stash for the whole repository is not locked, so that of two at once one may run the
other's experiment, and it changes the user's files meanwhile. A clone shares only Git's objects and DVC's cache.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pipeline.report.summary import registration, verdict
from pipeline.services.child_processes import spawn, stop
from pipeline.services.dvc_command import ADVICE, Log, cache_folder, error_line, make_clone
from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.digests import model_digest, value_digest
from vaeline.io.git import git, try_git
from vaeline.io.locks import acquire, locked
from vaeline.io.machine import cores
from vaeline.io.safe_read import shown
from vaeline.io.workspace import RunContext, Workspace
from vaeline.io.yaml_config import read_yaml
from vaeline.tracking.provenance import flatten_metrics

POLL_S = 0.2
NAME = re.compile(r"[\w+](\.?[\w+-]){0,200}", re.ASCII)  # of a Git reference and of files


class Result(TypedDict, total=False):
    """What became of an experiment."""

    seconds: float
    reason: str  # of a failure
    metrics: dict[str, float]  # "test.elbo": nats, ...
    digest: str  # of the model
    verdict: str  # of the registry's gate


@dataclass(frozen=True)
class Baseline:
    """The working tree that an experiment starts from: a commit, and the uncommitted changes of tracked files."""

    commit: str
    stash: str  # stash commit of the changes, empty where there are none
    changes: str  # digest of the changes: the id of a stash commit depends on the time too
    params: Any  # the content of params.yaml

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two baselines the same."""
        return {"commit": self.commit, "changes": self.changes, "params": self.params}


def read_baseline(workspace: Workspace) -> Baseline:
    """The working tree as it is now, which stays as it is. Raises UserError where there is no commit."""
    root = workspace.root
    git(root, "rev-parse", "--git-dir")  # Git's own error where there is no repository, or another user's
    commit = try_git(root, "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        raise UserError("git: no commit here; experiments need one: git add -A && git commit -m start")
    with locked(workspace.make_state() / "baseline.lock"):  # Git locks its index, and does not wait for another's lock
        options = ("--binary", "--no-color", "--no-ext-diff")
        diff = git(root, "diff", "HEAD", *options, "--", ":/", ":(exclude)dvc.lock")
        stash = git(root, "stash", "create", "vaeline")
    return Baseline(commit, stash, value_digest({"diff": diff}) if diff else "", read_yaml(workspace.params))


@dataclass(frozen=True)
class Origin:
    """What experiments start from, and the folder of their logs, locks and, while they run, clones."""

    workspace: Workspace
    baseline: Baseline
    folder: Path
    context: Mapping[str, str | None]  # of `RunContext`

    def reference(self, name: str) -> str:
        """Git reference by which DVC knows an experiment."""
        commit = self.baseline.commit
        return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"

    def remove_clones(self) -> None:
        """Remove the clones that killed processes left; not those at work."""
        for clone in (self.folder / "work").glob("*/"):
            if (lock := _lock_clone(clone, wait=False)) is not None:
                shutil.rmtree(clone, ignore_errors=True)
                os.close(lock)


class ExperimentProcess:
    """An experiment that runs on this machine."""

    def __init__(
        self,
        origin: Origin,
        name: str,
        changes: Sequence[str],
        environment: Mapping[str, str],
        targets: Sequence[str] = (),
        *,
        collect: bool = True,
    ) -> None:
        """Start `dvc exp run CHANGES TARGETS` (none: all stages) in a fresh clone. Raises UserError where Git fails.

        `collect`: whether its experiment and metrics are wanted. Another process that runs the same experiment here (a
        flow run that goes on with it) is waited for. The name may come from a database that others may write.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"experiment: found {shown(repr(name))}, allowed: letters, digits and single . + - _")
        self._origin, self._name, self._collect = origin, name, collect
        self._clone, self._log = origin.folder / "work" / name, origin.folder / f"{name}.log"
        self._lock = _lock_clone(self._clone)
        root, baseline = origin.workspace.root, origin.baseline
        try:
            cache = cache_folder(origin.workspace)
            project = make_clone(root, self._clone, baseline.commit, stash=baseline.stash, cache=cache).absolute()
            command = ["dvc", "--cd", str(project), "exp", "run", "--name", name, *changes, *targets]
            here = os.environ.get("PYTHONPATH", "")
            context = {"root": str(origin.workspace.repository.absolute()), "uploader_path": here, **origin.context}
            own = {  # the clone's own code, whatever is edited meanwhile
                "PYTHONPATH": os.pathsep.join(filter(None, [str(project / "src"), str(project), here])),
                "PYTHONUNBUFFERED": "1",
                "DVC_SITE_CACHE_DIR": str(project / ".dvc" / "tmp" / "site"),  # goes with the clone
            } | RunContext.read().environment(**context)
            self._project, self._started = project, time.monotonic()
            with self._log.open("a", encoding="utf-8") as output:
                self._log_start = output.tell()  # bytes that earlier runs left
                self._process = spawn(command, {**os.environ, **own, **environment}, output)
        except BaseException:
            self._remove_clone()
            raise

    def poll(self) -> Result | None:
        """None while it runs; then its result, the experiment brought back and the clone removed."""
        code = self._process.poll()
        if code is None:
            return None
        result = Result(seconds=round(time.monotonic() - self._started, 1))
        try:
            if code:
                with self._log.open("rb") as file:
                    file.seek(max(self._log_start, self._log.stat().st_size - 40_000))
                    lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
                lines = [line.rstrip() for line in lines if line.strip()]
                result["reason"] = "; ".join(error_line(lines, code).splitlines())
            elif self._collect:
                outputs, reference = Workspace(self._project), self._origin.reference(self._name)
                if (path := outputs.reports / "metrics.json").exists():
                    metrics = flatten_metrics(read_metrics(path))
                    result["metrics"] = {name.replace("/", "."): value for name, value in metrics.items()}
                if decision := registration(outputs):
                    result["verdict"] = verdict(decision)
                with suppress(OSError):
                    result["digest"] = model_digest(outputs.model)
                fetch = ("fetch", "-q", "--no-write-fetch-head", str(self._clone), f"+{reference}:{reference}")
                git(self._origin.workspace.root, *fetch)
        except UserError as error:
            result["reason"] = str(error)
        finally:
            self._remove_clone()
        return result

    def wait(self, echo: Log = lambda _: None) -> Result:
        """The result, the lines of the log to `echo` as they come; the process is stopped where that is cut off."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as log:
                log.seek(self._log_start)
                result, rest = None, ""
                while result is None:
                    time.sleep(POLL_S)
                    result = self.poll()
                    *lines, rest = (rest + log.read()).split("\n")
                    for line in lines:
                        if line and not ADVICE.match(line):
                            echo(line)
            return result
        finally:
            self.stop()

    def stop(self) -> None:
        """End it, with everything it started; a training leaves its checkpoint."""
        stop(self._process)
        self._remove_clone()

    def _remove_clone(self) -> None:
        """Remove the clone, once: afterwards another may be at work in its place."""
        if self._lock is not None:
            shutil.rmtree(self._clone, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def _lock_clone(clone: Path, wait: bool = True) -> int | None:
    """The lock on a clone, kept beside the folder of clones; None where another has it and is not waited for."""
    locks = clone.parents[1] / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return acquire(locks / clone.name, wait=wait)


def slots(jobs: int) -> list[dict[str, str]]:
    """The environment of each of `jobs` places: the accelerators in turn, else the cores divided.

    What the user's own environment says of threads stays.
    """
    if accelerators := _accelerators():
        return [{"CUDA_VISIBLE_DEVICES": accelerators[slot % len(accelerators)]} for slot in range(jobs)]
    threads = str(max(1, cores() // jobs))
    return [{name: threads for name in ("VAELINE_THREADS", "OMP_NUM_THREADS") if name not in os.environ}] * jobs


@contextmanager
def one_slot() -> Iterator[dict[str, str]]:
    """An accelerator that no other process in such a block on this machine has, else a shared one, else the cores."""
    locks = Path(tempfile.gettempdir()) / f"vaeline-devices-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for name in _accelerators():
        descriptor = acquire(locks / name.replace("/", "-"), wait=False)
        if descriptor is not None:
            try:
                yield {"CUDA_VISIBLE_DEVICES": name}
            finally:
                os.close(descriptor)
            return
    yield slots(1)[0]


def _accelerators() -> list[str]:
    """The CUDA devices that may be used, as CUDA_VISIBLE_DEVICES names them; torch would take seconds to ask."""
    if os.environ.get("VAELINE_DEVICE") == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in map(str.strip, visible.split(",")) if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []
