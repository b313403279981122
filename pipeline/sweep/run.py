"""One experiment, or a sweep from its first trial to its last line: several at once; a signal loses nothing.

Both run in clones, so that params.yaml, dvc.lock and the data stay as they are.
"""

import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from pipeline.services.dvc_command import TRANSIENT, Log, StageError
from pipeline.sweep.experiments import Values, parse_overrides, with_values
from pipeline.sweep.process import POLL_S, ExperimentProcess, Origin, Result, read_baseline, slots
from pipeline.sweep.reports import best, gate_verdict, report_to_mlflow, result, status, to_markdown, write_reports
from pipeline.sweep.space import check, corners
from pipeline.sweep.study import NAME, NAMES, Sweep, exclusive
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.git import git
from vaeline.io.progress import Progress
from vaeline.io.workspace import Workspace

OF_DVC = re.compile(
    r"Reproducing experiment|Ran experiment|Experiment results|To apply the results|\s+dvc exp |$"
    r"|WARNING: No file hash info"  # where nothing has run yet
)


class Job(Protocol):
    """A trial at work, here or elsewhere."""

    def poll(self) -> Result | None:
        """None while it runs; then its result."""

    def stop(self) -> None:
        """End it."""


def run_experiment(
    workspace: Workspace, overrides: Sequence[str], name: str, only: str, force: bool, log: Log
) -> tuple[str, Result]:
    """Name and result of an experiment with these changes to params.yaml, its output to `log` as it comes.

    Raises UserError where a change or the name is wrong, and with the stage's error line where it fails.
    """
    if name and not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, allowed: {NAMES}")
    baseline = read_baseline(workspace)
    arguments = parse_overrides(overrides, baseline.params)
    if name and not force and git(workspace.root, "for-each-ref", f"refs/exps/*/*/{name}"):
        raise UserError(f"--name: experiment {name} exists; choose another name, or remove it: dvc exp remove {name}")
    if not name:
        words = "-".join(re.sub(r"^[^=]*\.", "", override).replace("=", "") for override in overrides)
        digest = value_digest({"baseline": baseline.identity, "arguments": arguments, "only": only})
        name = f"{re.sub(r'[^A-Za-z0-9+-]+', '_', words)[:50].strip('-_')}-{digest[:6]}"
    origin = Origin(workspace, baseline, workspace.make_state() / "experiments", {})
    origin.remove_clones()
    targets = [*(["--force"] if force else []), *([only] if only else [])]
    process = ExperimentProcess(origin, name, arguments, {}, targets)
    ended = process.wait(lambda line: None if OF_DVC.match(line) else log(line))
    if "reason" in ended:
        reason = ended["reason"]
        message = f"experiment {name} failed: {reason}; the workspace is as it was"
        raise StageError(message, transient=TRANSIENT.search(reason) is not None)
    return name, ended


def run_sweep(sweep: Sweep, jobs: int, register: bool, log: Log) -> bool:
    """Run what is missing, rank, and report; returns whether no trial and no stage of the best failed."""
    again = f"vaeline sweep --name {sweep.name}"

    def summary() -> str:
        failed = sweep.count(TrialState.FAIL)
        done = f"{sweep.count(TrialState.COMPLETE)} of {sweep.total} trials done"
        return f"{done}, {failed} failed" if failed else done

    with exclusive(sweep):
        sweep.origin.remove_clones()
        log(f"sweep {sweep.name}: {summary()}, {jobs} at once; logs in {sweep.folder}/")
        if away := report_to_mlflow(sweep):
            log(f"the sweep goes on without MLflow: {away}")
        try:
            run_trials_here(sweep, jobs, log)
            decided = not register or complete_best(sweep, log)
        except BaseException:
            log(f"stopped: {summary()}; go on with: {again}")
            raise
        folder = write_reports(sweep)
        if away := report_to_mlflow(sweep, folder):
            log(f"not in MLflow: {away}; try again with: {again}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    log(f"{to_markdown(sweep, width)}\ntable, pictures:  {folder}/\nall experiments:  dvc exp show")
    if chosen := best(sweep):
        log(f"the best's gate:  {gate_verdict(sweep) or 'not asked'}")
        log(f"take one over:    dvc exp apply {chosen.user_attrs['name']}")
        log("                  (but for the best, stages after evaluate have not run: dvc repro runs them)")
    return decided and sweep.count(TrialState.COMPLETE) == sweep.total


def run_trials(sweep: Sweep, start: Callable[[FrozenTrial, int], Job], jobs: int, log: Log) -> None:
    """Run what is missing, `jobs` at once, by `start(trial, place)`, 0 <= place < jobs; store results as they come.

    Whatever ends this early (Ctrl-C, SIGTERM, an error) stops the running trials first; they stay to be done.
    """
    running: dict[int, tuple[FrozenTrial, Job]] = {}  # by place

    def finish(trial: FrozenTrial, outcome: Result) -> None:
        ended = sweep.finish(trial.number, outcome)
        text = status(ended) if ended.value is None else f"done, {sweep.metric} {ended.value:.5g}"
        log(f"{trial.user_attrs['name']}: {text} ({result(ended).get('seconds', 0):.0f} s)")

    done = sweep.count(TrialState.COMPLETE)
    with Progress(f"sweep {sweep.name}", sweep.total, "trials", done=done) as bar:
        try:
            while True:
                while len(running) < jobs and (trial := sweep.next_trial()):
                    place = min(set(range(jobs)) - running.keys())
                    try:
                        check(sweep.baseline.params, [trial.user_attrs["values"]])  # drawn ones may contradict
                        running[place] = trial, start(trial, place)
                    except (UserError, OSError) as error:  # a full disk, a damaged repository
                        finish(trial, {"reason": "; ".join(str(error).splitlines())})
                    else:
                        log(f"{trial.user_attrs['name']}: running")
                if not running:
                    return
                time.sleep(POLL_S)
                for place, (trial, job) in list(running.items()):
                    if (outcome := job.poll()) is not None:
                        del running[place]
                        finish(trial, outcome)
                        done = sweep.count(TrialState.COMPLETE)
                bar.update(done)
        finally:
            with ThreadPoolExecutor() as pool:  # together: a training may take seconds to write its checkpoint
                list(pool.map(lambda entry: entry[1].stop(), running.values()))


def run_trials_here(sweep: Sweep, jobs: int, log: Log) -> None:
    """Run what is missing on this machine, each trial on a device or a share of the cores.

    First fetch and prepare once for each different section `data`, so that the trials find both in DVC's cache. A
    failure of that is left to the trials, which meet it again and report it.
    """
    places, trials = slots(jobs), sweep.trials()
    waiting: list[Values] = [t.user_attrs["values"] for t in trials if t.state == TrialState.WAITING]
    if len(trials) < sweep.total:  # a search has yet to draw
        waiting += islice(corners(sweep.space), 1)
    different = {value_digest(with_values(sweep.baseline.params, values)["data"]): values for values in waiting}
    for digest, values in different.items():
        name, changes = f"{sweep.name}-data-{digest[:6]}", sweep.changes(values)
        ExperimentProcess(sweep.origin, name, changes, slots(1)[0], ("prepare",), collect=False).wait()

    def start(trial: FrozenTrial, place: int) -> Job:
        name, changes = trial.user_attrs["name"], sweep.changes(trial.user_attrs["values"])
        return ExperimentProcess(sweep.origin, name, changes, places[place], ("evaluate",))

    run_trials(sweep, start, jobs, log)


def complete_best(sweep: Sweep, log: Log) -> bool:
    """Run the best trial's remaining stages: samples, theory, and the registry's gate; whether none failed.

    Its trained model and scores come out of DVC's cache. The other trials register nothing.
    """
    chosen = best(sweep)
    name = chosen.user_attrs["name"] if chosen else ""
    if chosen is None or sweep.study.user_attrs.get("completed") == name:
        return True
    log(f"the best, {name}: its remaining stages, and the registry's gate")
    ended = ExperimentProcess(sweep.origin, name, sweep.changes(chosen.user_attrs["values"]), slots(1)[0]).wait()
    if why := ended.get("reason"):
        log(f"not registered: {why}; try again with: vaeline sweep --name {sweep.name}")
        return False
    sweep.study.set_user_attr("completed", name)
    sweep.study.set_user_attr("verdict", ended.get("verdict", ""))
    return True
