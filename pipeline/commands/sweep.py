"""`vaeline` sweep: many experiments, several at once."""

from enum import StrEnum
from typing import Annotated

import typer

from pipeline.services.environment import enter_workspace, prepare_environment

app = typer.Typer()


class Search(StrEnum):
    """How the values are chosen."""

    GRID = "grid"
    RANDOM = "random"
    BAYESIAN = "bayesian"


@app.command()
def sweep(
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUES...", help="train.beta=0.5,1,2 or train.beta=log:0.1..10")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once, each on its own device or share of the cores.")] = 1,
    search: Annotated[Search, typer.Option(help="grid: every combination; the others draw --trials.")] = Search.GRID,
    trials: Annotated[int, typer.Option(min=0, help="How many a search draws.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of a search.")] = 1,
    metric: Annotated[str, typer.Option(help="What ranks: a path in reports/metrics.json.")] = "test.elbo",
    maximise: Annotated[bool | None, typer.Option("--maximise/--minimise", help="If the name does not tell.")] = None,
    name: Annotated[str, typer.Option(help="Of the sweep; else made from what is asked.")] = "",
    resume: Annotated[str, typer.Option(help="Go on with the sweep of this name, as it was asked.")] = "",
    register: Annotated[bool, typer.Option(help="Complete the best trial, through the registry's gate.")] = True,
) -> None:
    """Run every combination of params as a DVC experiment, several at once, and rank them.

    The same command again, or --resume NAME, runs only what is missing. Exit code 1 where a trial failed.
    """
    enter_workspace()
    prepare_environment()
    from pipeline.sweep.command import Asked, run_sweep

    asked = Asked(assignments or [], search.value, trials, seed, metric, maximise, name, resume)
    if not run_sweep(asked, jobs, register):
        raise typer.Exit(1)
