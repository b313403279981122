"""`vaeline` sweep: many experiments, several at once."""

from typing import Annotated, Literal

import typer

from pipeline.services.environment import enter_workspace, prepare_environment

app = typer.Typer()


@app.command()
def sweep(
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUES...", help="train.beta=0.5,1,2 or train.beta=log:0.1..10")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once, each on its own device or share of the cores.")] = 1,
    search: Annotated[
        Literal["grid", "random", "bayesian"], typer.Option(help="grid: every combination; the others draw --trials.")
    ] = "grid",
    trials: Annotated[int, typer.Option(min=0, help="How many a search draws.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of a search.")] = 1,
    metric: Annotated[
        str, typer.Option(help="What ranks: a path in reports/metrics.json; max:PATH or min:PATH.")
    ] = "test.elbo",
    name: Annotated[str, typer.Option(help="Of the sweep; without KEY=VALUES: go on with this one.")] = "",
    register: Annotated[bool, typer.Option(help="Complete the best trial, through the registry's gate.")] = True,
) -> None:
    """Run every combination of params as a DVC experiment, several at once, and rank them.

    The same command again, or --name NAME alone, runs only what is missing. Exit code 1 where a trial failed.
    """
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.sweep.run import run_sweep
    from pipeline.sweep.study import Request, plan_sweep

    request = Request(assignments or [], search, trials, seed, metric)
    if not run_sweep(plan_sweep(workspace, request, name), jobs, register, typer.echo):
        raise typer.Exit(1)
