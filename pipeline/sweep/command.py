"""The command `vaeline sweep` from its arguments to its last line."""

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from pipeline.sweep.ranking import best, parse_metric, rows
from pipeline.sweep.reports import begin_in_mlflow, end_in_mlflow, write_reports
from pipeline.sweep.run import complete_best, count, run_trials_here
from pipeline.sweep.study import Request, Search, Sweep, exclusive, load_sweep, plan_sweep
from pipeline.sweep.trial import remove_clones
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


def requested_sweep(
    workspace: Workspace, assignments: list[str], search: Search, trials: int, seed: int, metric: str, name: str
) -> Sweep:
    """The sweep that is asked for; a name alone stands for a known one. Raises UserError for whatever is wrong."""
    if assignments:
        return plan_sweep(workspace, Request(assignments, search, trials, seed, *parse_metric(metric)), name)
    if not name:
        raise UserError("nothing to vary: vaeline sweep KEY=VALUE,VALUE ..., or --name NAME to go on with a sweep")
    if (search, trials, seed, metric) != ("grid", 0, 1, "test.elbo"):
        raise UserError("--name: goes on with the sweep as it was asked; leave out the other options but --jobs")
    return load_sweep(workspace, name)


def run_sweep(sweep: Sweep, jobs: int, register: bool) -> bool:
    """Run what is missing, rank, and report; returns whether no trial failed."""
    console = Console(highlight=False)
    again = f"vaeline sweep --name {sweep.name}"

    def log(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    with exclusive(sweep):
        sweep.begin()
        remove_clones(sweep)
        log(f"sweep {sweep.name}: {_summary(sweep)}, {jobs} at once; logs in {sweep.folder}/")
        if away := begin_in_mlflow(sweep):
            log(f"the sweep goes on without MLflow: {away}")
        try:
            run_trials_here(sweep, jobs, log)
            if register:
                complete_best(sweep, log)
        except BaseException:
            log(f"stopped: {_summary(sweep)}; go on with: {again}")
            raise
        folder = write_reports(sweep)
        if away := end_in_mlflow(sweep):
            log(f"not in MLflow: {away}; try again with: {again}")
    table = _table(sweep)
    if not console.is_terminal:  # a file has any width
        console.width = max(80, Console(width=10_000).measure(table).maximum)
    console.print(table)
    log(f"\ntable, pictures:  {folder}/")
    log("all experiments:  dvc exp show")
    if chosen := best(sweep):
        log(f"take one over:    dvc exp apply {chosen.user_attrs['name']}")
        log("                  (but for the best, stages after evaluate have not run: dvc repro runs them)")
    return all(trial.state == TrialState.COMPLETE for trial in sweep.trials())


def _summary(sweep: Sweep) -> str:
    failed = count(sweep, TrialState.FAIL)
    done = f"{count(sweep, TrialState.COMPLETE)} of {sweep.total} trials done"
    return f"{done}, {failed} failed" if failed else done


def _table(sweep: Sweep) -> Table:
    """The ranking, the best first."""
    header, body = rows(sweep)
    title = f"{sweep.name}, by {sweep.request.metric}"
    table = Table(box=None, title=title, title_justify="left", padding=(0, 2, 0, 0))
    for name in header:
        text = name in ("trial", "outcome")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for index, row in enumerate(body):
        table.add_row(*row, style="bold" if index == 0 and row[0] else "")
    return table
