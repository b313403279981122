"""The command `vaeline sweep` from its arguments to its last line."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from pipeline.sweep.devices import slots
from pipeline.sweep.progress import ranking_table, watching
from pipeline.sweep.publish import begin_in_mlflow, end_in_mlflow, write_reports
from pipeline.sweep.ranking import best, is_maximised
from pipeline.sweep.run import Start, complete_best, only_one, prepare_data, run_trials, start_here
from pipeline.sweep.state import Request, Sweep
from pipeline.sweep.trial import read_baseline
from vaeline.errors import UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """The arguments that say what the sweep is."""

    assignments: list[str] = field(default_factory=list)
    search: Literal["grid", "random", "bayesian"] = "grid"
    trials: int = 0
    seed: int = 1
    metric: str = "test.elbo"
    maximise: bool | None = None
    name: str = ""
    resume: str = ""


def run_sweep(asked: Asked, jobs: int, register: bool) -> bool:
    """Run what is missing, rank, and tell; whether no trial failed. Raises UserError before anything runs."""
    console = Console(highlight=False)
    sweep = planned(asked)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    with only_one(sweep.name):
        sweep = known_or_new(sweep)
        say(f"sweep {sweep.name}: {_count(sweep)}, {jobs} at once; logs in .vaeline/sweeps/{sweep.name}/")
        if away := begin_in_mlflow(sweep):
            say(f"the sweep goes on without MLflow: {away}")
        try:
            prepare_data(sweep, start_here(sweep, slots(1), ("prepare",), collect=False))
            with watching(sweep, console) as watch:
                run_trials(sweep, start_here(sweep, slots(jobs), ("evaluate",)), jobs, watch)
            if register:
                _complete(sweep, start_here(sweep, slots(1)), say)
        except BaseException:
            say(f"stopped: {_count(sweep)}; go on with: vaeline sweep --resume {shlex.quote(sweep.name)}")
            raise
        _tell(sweep, console, say)
    return all(trial.status == "done" for trial in sweep.trials)


def planned(asked: Asked) -> Sweep:
    """The sweep as asked for on the working tree as it is. Raises UserError for whatever is wrong with it."""
    baseline = read_baseline()
    if asked.resume:
        found = Sweep.load(asked.resume)
        if found is None:
            raise UserError(f"--resume: there is no sweep {asked.resume!r} in .vaeline/sweeps")
        request = found.request
        if asked != Asked(resume=asked.resume):
            raise UserError("--resume: goes on as it was asked; leave KEY=VALUES and the other options but --jobs out")
        return Sweep.plan(asked.resume, request, baseline)
    if not asked.assignments:
        raise UserError("nothing to vary: vaeline sweep KEY=VALUE,VALUE ..., or --resume NAME")
    if (asked.search == "grid") != (asked.trials == 0) or asked.trials < 0:
        raise UserError("--trials: how many a search draws: needed by --search random and bayesian, and only by them")
    maximise = is_maximised(asked.metric) if asked.maximise is None else asked.maximise
    request = Request(asked.assignments, asked.search, asked.trials, asked.seed, asked.metric, maximise)
    return Sweep.plan(asked.name, request, baseline)


def known_or_new(wanted: Sweep) -> Sweep:
    """The sweep on disk where it is the wanted one, else the wanted one. Raises UserError where the name is taken."""
    found = Sweep.load(wanted.name)
    if found is None:
        wanted.save()
        return wanted
    if found.request != wanted.request:
        raise UserError(f"sweep {wanted.name}: was asked for other things; choose another --name")
    if found.baseline.identity != wanted.baseline.identity:
        raise UserError(
            f"sweep {wanted.name}: began on commit {found.baseline.commit[:8]} with other params or uncommitted "
            "changes; go back to them, or choose another --name"
        )
    found.baseline = wanted.baseline  # Git may have forgotten the stash commit of then
    return found


def _complete(sweep: Sweep, begin: Start, say: Say) -> None:
    chosen = best(sweep)
    if chosen is None or sweep.completed == chosen.name:
        return
    say(f"the best, {chosen.name}: its remaining stages, and the registry's gate")
    if why := complete_best(sweep, begin):
        say(f"not registered: {why}; try again with: vaeline sweep --resume {shlex.quote(sweep.name)}")


def _tell(sweep: Sweep, console: Console, say: Say) -> None:
    folder = write_reports(sweep)
    if away := end_in_mlflow(sweep):
        say(f"not in MLflow: {away}; try again with: vaeline sweep --resume {shlex.quote(sweep.name)}")
    table = ranking_table(sweep)
    if not console.is_terminal:  # a file has any width
        console.width = max(80, Console(width=10_000).measure(table).maximum)
    console.print(table)
    say(f"\ntable, pictures:  {folder}/")
    say("all experiments:  dvc exp show")
    if chosen := best(sweep):
        say(f"take one over:    dvc exp apply {chosen.name}")
        say("                  (but for the best, stages after evaluate have not run: dvc repro makes up for them)")


def _count(sweep: Sweep) -> str:
    states = [trial.status for trial in sweep.trials]
    done, failed = states.count("done"), states.count("failed")
    return f"{done} of {sweep.total} trials done" + (f", {failed} failed" if failed else "")
