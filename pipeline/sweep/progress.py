"""A sweep while it runs: a live table in a terminal, else a line for every trial that begins or ends."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.sweep.ranking import described, outcome, rows
from pipeline.sweep.run import Job, Watch
from pipeline.sweep.state import Sweep, Trial


@contextmanager
def watching(sweep: Sweep, console: Console) -> Iterator[Watch]:
    """What `run_trials` tells: who runs, who has just ended."""
    if not console.is_terminal:
        yield plain(sweep, lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False))
        return
    with Live(console=console, refresh_per_second=4) as live:

        def watch(running: Iterable[Job], ended: Trial | None) -> None:
            live.update(_table(sweep, list(running)))
            if ended is not None:
                live.console.print(_ended(sweep, ended), markup=False, highlight=False)

        yield watch


def plain(sweep: Sweep, say: Callable[[str], None]) -> Watch:
    """A line for every trial that begins or ends."""
    known: set[str] = set()

    def watch(running: Iterable[Job], ended: Trial | None) -> None:
        for job in running:
            if job.trial.name not in known:
                known.add(job.trial.name)
                say(f"{_place(sweep, job.trial)} {job.trial.name}: running")
        if ended is not None:
            say(_ended(sweep, ended))

    return watch


def _place(sweep: Sweep, trial: Trial) -> str:
    width = len(str(sweep.total))
    return f"[{trial.number + 1:>{width}}/{sweep.total}]"


def _ended(sweep: Sweep, trial: Trial) -> str:
    score = sweep.score(trial)
    what = outcome(sweep, trial) if score is None else f"done, {sweep.request.metric} {score:.5g}"
    return f"{_place(sweep, trial)} {trial.name}: {what} ({trial.seconds:.0f} s)"


def _table(sweep: Sweep, running: list[Job]) -> Table:
    states = [trial.status for trial in sweep.trials]
    done, failed = states.count("done"), states.count("failed")
    waiting = sweep.total - done - failed - len(running)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(sweep.name, f"{done} done, {failed} failed, {len(running)} running, {waiting} waiting")
    for job in running:
        table.add_row(described(sweep, job.trial), job.last_line()[:100])
    return table


def ranking_table(sweep: Sweep) -> Table:
    """The final table, the best first, for a terminal or a file."""
    header, body = rows(sweep)
    table = Table(
        box=None, title=f"{sweep.name}, by {sweep.request.metric}", title_justify="left", padding=(0, 2, 0, 0)
    )
    for name in header:
        kind: Any = "left" if name in ("trial", "outcome") else "right"
        table.add_column(name, justify=kind, no_wrap=name not in ("trial", "outcome"), overflow="fold")
    for index, row in enumerate(body):
        table.add_row(*row, style="bold" if index == 0 and row[0] else "")
    return table
