"""One trial: `dvc exp run` in a clone of its own, and the experiment brought back into the repository.

Why a clone and not `dvc exp run --temp`: that keeps what is to run in one stash for the whole repository, unlocked
between putting in and taking out, so that of two at once one may run the other's trial, and it changes the user's own
files while it does. A clone has its own stash and locks, shares Git's objects and DVC's cache, and touches nothing.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pipeline.services.child_processes import Process, spawn, stop
from pipeline.services.clone import make_clone
from pipeline.services.dvc_command import error_line
from pipeline.sweep.experiments import differences
from pipeline.sweep.state import Baseline, Sweep, Trial, folder
from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.digests import model_digest, value_digest
from vaeline.io.git import git, try_git
from vaeline.io.locks import acquire, locked
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import MODEL, PARAMS, REPORTS, make_state_folder, repository_root
from vaeline.io.yaml_config import read_yaml
from vaeline.tracking.provenance import flatten_metrics


@dataclass
class Running:
    """A trial at work."""

    trial: Trial
    baseline: Baseline
    clone: Path
    log: Path
    before: int  # bytes that earlier tries left in the log
    process: Process
    output: IO[str]
    started: float
    collect: bool  # whether its experiment is wanted
    lock: int  # of the clone, held while this is at work in it

    def last_line(self) -> str:
        """What the trial said last."""
        lines = _tail(self.log, self.before, 2000)
        return lines[-1] if lines else ""

    def poll(self) -> Trial | None:
        """None while it runs; then what became of it, its experiment brought back and its clone removed."""
        code = self.process.poll()
        if code is None:
            return None
        self.output.close()
        seconds = round(time.monotonic() - self.started, 1)
        try:
            if code:
                return replace(self.trial, status="failed", reason=self._reason(code), seconds=seconds)
            if not self.collect:
                return self.trial
            metrics, digest = _metrics(self.clone), _digest(self.clone)
            _bring_back(self.clone, self.baseline, self.trial.name)
            return replace(self.trial, status="done", reason="", metrics=metrics, digest=digest, seconds=seconds)
        except UserError as error:
            return replace(self.trial, status="failed", reason=str(error), seconds=seconds)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Remove the clone, once: afterwards another may be at work in its place."""
        if self.lock >= 0:
            shutil.rmtree(self.clone, ignore_errors=True)
            os.close(self.lock)
            self.lock = -1

    def _reason(self, code: int) -> str:
        """Why it failed, in one line."""
        return error_line(_tail(self.log, self.before, 40_000), code).replace("\n", "; ")

    def stop(self) -> None:
        """End it, with everything it started; a training leaves its checkpoint."""
        stop(self.process)
        self.output.close()
        self._leave()


def read_baseline() -> Baseline:
    """The working tree as it is now, which stays as it is. Raises UserError where there is no commit."""
    git(Path(), "rev-parse", "--git-dir")  # its own words where it sees no repository here, or does not trust its owner
    commit = try_git(Path(), "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        raise UserError("git: no commit here; experiments need one: git add -A && git commit -m start")
    with locked(make_state_folder() / "baseline.lock"):  # Git locks its index, and does not wait for another's lock
        diff = git(
            Path(), "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--", ":/", ":(top,exclude)dvc.lock"
        )
        stash = git(Path(), "stash", "create", "vaeline sweep")
    return Baseline(commit, stash, value_digest({"diff": diff}) if diff else "", read_yaml(PARAMS))


def start(
    sweep: Sweep,
    trial: Trial,
    cache: Path,
    environment: Mapping[str, str],
    targets: Sequence[str] = (),
    *,
    collect: bool = True,
) -> Running:
    """Start `dvc exp run TARGETS` (none: all stages) of a trial in a fresh clone. Raises UserError where Git cannot.

    Another process that runs the same trial here (a flow run that goes on with it) is waited for.
    """
    home = folder(sweep.name)
    clone, log = home / "work" / trial.name, home / f"{trial.name}.log"
    lock = _lock(clone)
    assert lock is not None
    try:
        make_clone(Path(), clone, sweep.baseline.commit, stash=sweep.baseline.stash, cache=cache)
        wanted = differences(sweep.baseline.params, sweep.params(trial))
        changes = [item for change in wanted for item in ("-S", change)]
        command = ["dvc", "--cd", str(clone), "exp", "run", "--name", trial.name, *changes, *targets]
        output = log.open("a", encoding="utf-8")
        before, process = output.tell(), spawn(command, _environment(sweep, clone) | dict(environment), output)
    except BaseException:
        os.close(lock)
        raise
    return Running(trial, sweep.baseline, clone, log, before, process, output, time.monotonic(), collect, lock)


def _environment(sweep: Sweep, clone: Path) -> dict[str, str]:
    paths = [str(clone / "src"), str(clone), os.environ.get("PYTHONPATH", "")]
    context = RunContext.read().environment(
        root=str(repository_root().absolute()),
        sweep=sweep.name,
        parent_run=sweep.parent_run_id or None,
        uploader_path=os.environ.get("PYTHONPATH", ""),
    )
    return (os.environ | context) | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),  # the clone's code, whatever is edited meanwhile
        "PYTHONUNBUFFERED": "1",
        "DVC_SITE_CACHE_DIR": str(clone / ".dvc" / "tmp" / "site"),  # goes with the clone
    }


def clear(name: str) -> None:
    """Remove the clones that killed processes left of a sweep; not those at work."""
    for clone in (folder(name) / "work").glob("*/"):
        lock = _lock(clone, wait=False)
        if lock is not None:
            shutil.rmtree(clone, ignore_errors=True)
            os.close(lock)


def _lock(clone: Path, wait: bool = True) -> int | None:
    """The lock on a clone, kept beside the folder of clones; None where another has it and is not waited for."""
    locks = clone.parents[1] / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return acquire(locks / clone.name, wait=wait)


def _bring_back(clone: Path, baseline: Baseline, name: str) -> None:
    """Fetch the experiment's commit, under the reference by which DVC knows it."""
    ref = f"refs/exps/{baseline.commit[:2]}/{baseline.commit[2:]}/{name}"
    git(Path(), "fetch", "-q", "--no-write-fetch-head", str(clone), f"+{ref}:{ref}")


def _metrics(clone: Path) -> dict[str, float]:
    """The numbers of the trial's reports/metrics.json by their dotted paths. Raises UserError where it is missing."""
    report = read_metrics(clone / REPORTS / "metrics.json")
    return {name.replace("/", "."): value for name, value in flatten_metrics(report).items()}


def _digest(clone: Path) -> str:
    try:
        return model_digest(clone / MODEL)
    except OSError:
        return ""


def _tail(log: Path, start: int, size: int) -> list[str]:
    """The lines from byte `start` on that are not empty, of the last `size` bytes; carriage returns end lines too."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - size))
        text = file.read().decode("utf-8", "replace")
    return [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
