"""One trial: `dvc exp run` in a clone of its own, and the experiment brought back into the repository.

Not `dvc exp run --temp`: its one stash for the whole repository is not locked, so that of two at once one may run the
other's trial, and it changes the user's files meanwhile. A clone shares only Git's objects and DVC's cache.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.services.child_processes import spawn, stop
from pipeline.services.dvc_command import cache_folder, error_line, make_clone
from pipeline.sweep.experiments import Values, override_arguments, with_values
from pipeline.sweep.study import Result, Sweep
from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.digests import model_digest
from vaeline.io.git import git
from vaeline.io.locks import acquire
from vaeline.io.workspace import RunContext, Workspace
from vaeline.tracking.provenance import flatten_metrics

POLL_S = 0.2


class TrialProcess:
    """A trial that runs on this machine."""

    def __init__(
        self,
        sweep: Sweep,
        name: str,
        values: Values,
        environment: Mapping[str, str],
        targets: Sequence[str] = (),
        *,
        collect: bool = True,
    ) -> None:
        """Start `dvc exp run TARGETS` (none: all stages) in a fresh clone. Raises UserError where Git fails.

        `collect`: whether its experiment and metrics are wanted. Another process that runs the same trial here (a flow
        run that goes on with it) is waited for.
        """
        self._sweep, self._name, self._collect = sweep, name, collect
        self._clone, self._log = sweep.folder / "work" / name, sweep.folder / f"{name}.log"
        self._lock = _lock_clone(self._clone)
        root, baseline = sweep.workspace.root, sweep.baseline
        try:
            cache = cache_folder(sweep.workspace)
            project = make_clone(root, self._clone, baseline.commit, stash=baseline.stash, cache=cache).absolute()
            changes = override_arguments(baseline.params, with_values(baseline.params, values))
            command = ["dvc", "--cd", str(project), "exp", "run", "--name", name, *changes, *targets]
            here, parent = os.environ.get("PYTHONPATH", ""), sweep.study.user_attrs.get("parent_run")
            context = {"root": str(sweep.workspace.repository.absolute()), "sweep": sweep.name, "parent_run": parent}
            own = {  # the clone's own code, whatever is edited meanwhile
                "PYTHONPATH": os.pathsep.join(filter(None, [str(project / "src"), str(project), here])),
                "PYTHONUNBUFFERED": "1",
                "DVC_SITE_CACHE_DIR": str(project / ".dvc" / "tmp" / "site"),  # goes with the clone
            } | RunContext.read().environment(**context, uploader_path=here)
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
                outputs = Workspace(self._project)
                metrics = flatten_metrics(read_metrics(outputs.reports / "metrics.json"))
                result["metrics"] = {name.replace("/", "."): value for name, value in metrics.items()}
                with suppress(OSError):
                    result["digest"] = model_digest(outputs.model)
                commit = self._sweep.baseline.commit
                ref = f"refs/exps/{commit[:2]}/{commit[2:]}/{self._name}"  # by which DVC knows the experiment
                root, project = self._sweep.workspace.root, str(self._project)
                git(root, "fetch", "-q", "--no-write-fetch-head", project, f"+{ref}:{ref}")
        except UserError as error:
            result["reason"] = str(error)
        finally:
            self._remove_clone()
        return result

    def wait(self) -> Result:
        """The result; the process is stopped where the waiting is cut off."""
        try:
            while (result := self.poll()) is None:
                time.sleep(POLL_S)
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


def remove_clones(sweep: Sweep) -> None:
    """Remove the clones that killed processes left of a sweep; not those at work."""
    for clone in (sweep.folder / "work").glob("*/"):
        if (lock := _lock_clone(clone, wait=False)) is not None:
            shutil.rmtree(clone, ignore_errors=True)
            os.close(lock)


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
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
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
