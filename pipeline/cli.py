"""The command `vaeline` in a workspace. A command imports what it needs when it runs, so that each starts fast."""

import gc
import logging
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from pipeline.commands import registry
from pipeline.services.environment import enter_workspace, prepare_environment, prepare_tools
from vaeline.command.main import Json, app, print_json
from vaeline.command.program import run_program
from vaeline.config import read_params
from vaeline.errors import UserError, redact
from vaeline.io.workspace import Workspace, expanded

app.add_typer(registry.app)


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 error, one line on stderr, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    gc.set_threshold(300_000)  # importing MLflow and torch costs a fifth less
    run_program(app)


@app.command()
def run(
    changes: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="Change params.yaml: an experiment, in a copy."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the experiment.")] = "",
    only: Annotated[str, typer.Option(metavar="STAGE", help="This stage and those it needs.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also the stages that have not changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print which stages would run.")] = False,
) -> None:
    """Bring the stages of dvc.yaml up to date, as a Prefect flow; with -S in a copy, as `dvc exp run --temp` does."""
    workspace = enter_workspace()
    read_params(workspace.params)  # a typing mistake is reported before any server starts
    prepare_environment(workspace)
    from pipeline.services.dvc_command import needed_stages, stages_to_run

    needed_stages(workspace, only)
    if name and not changes:
        raise typer.BadParameter("--name is an experiment's: it needs -S KEY=VALUE")
    if dry_run:
        from pipeline.sweep.experiments import changed_keys
        from vaeline.io.yaml_config import read_yaml

        todo = stages_to_run(workspace, only, force, changed_keys(changes or [], read_yaml(workspace.params)))
        typer.echo(f"would run: {', '.join(todo)}" if todo else "nothing to do")
    elif changes:
        from pipeline.sweep.run import run_experiment

        name, result = run_experiment(workspace, changes, name, only, force, typer.echo)
        elbo = result.get("metrics", {}).get("test.elbo")
        typer.echo(f"\nexperiment {name}{'' if elbo is None else f', test ELBO {elbo:.4f}'}: {result['seconds']:.0f} s")
        typer.echo(f"model:    {result.get('verdict', 'not registered')}")
        typer.echo(f"take it over: dvc exp apply {name}{'; dvc repro' if only else ''}; all experiments: dvc exp show")
    else:
        from pipeline.flows.run import main

        main(only, force)


@app.command()
def init(
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="PNG or JPEG files; subfolders are classes.")],
) -> None:
    """Write the sections `data` and `register` of params.yaml for your images, and say what was chosen and why."""
    folder = expanded(str(images), "--images").absolute()  # from where the user is
    workspace = enter_workspace()
    from pipeline.commands.init import write_params

    typer.echo("\n".join(write_params(workspace.params, folder)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def experiment(context: typer.Context, name: Annotated[str, typer.Argument()] = "") -> None:
    """Run a named experiment by `dvc exp run`, which gets further options (--temp, -S ...); no name: list them."""
    workspace = enter_workspace()
    from pipeline.services.dvc_command import copies_fault
    from pipeline.sweep.experiments import EXPERIMENTS, experiment_overrides, read_experiments
    from vaeline.io.yaml_config import read_yaml

    experiments = read_experiments(workspace.root / EXPERIMENTS)
    if not name:
        for entry, content in experiments.items():
            typer.echo(f"{entry}\n    {content.about}")
        return
    changes = experiment_overrides(name, read_yaml(workspace.params), experiments)
    prepare_environment(workspace)
    if {"--temp", "--queue"} & set(context.args) and (fault := copies_fault(workspace)):
        raise UserError(fault)
    os.execvp("dvc", ["dvc", "exp", "run", *changes, *context.args])


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
    as_json: Json = False,
) -> None:
    """Run every combination of params as a DVC experiment, several at once, and rank them.

    The same command again, or --name NAME alone, runs only what is missing. Exit code 1 where a trial failed.
    """
    workspace = prepare_environment(enter_workspace())
    from pipeline.sweep.reports import to_json
    from pipeline.sweep.run import run_sweep
    from pipeline.sweep.study import Request, plan_sweep

    planned = plan_sweep(workspace, Request(assignments or [], search, trials, seed, metric), name)
    done = run_sweep(planned, jobs, register, partial(typer.echo, err=as_json))
    if as_json:
        print_json(to_json(planned))
    if not done:
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="MLflow's; another where it is taken.")] = 5000,
) -> None:
    """Serve the MLflow and Prefect web interfaces on this machine until Ctrl-C."""
    workspace = prepare_environment()
    from pipeline.services.servers import serve

    try:
        serve(workspace, typer.echo, port)
    except KeyboardInterrupt:
        typer.echo("stopped")


@app.command()
def explore(
    uri: Annotated[str, typer.Argument(help="default: models:/NAME@champion, NAME of params.yaml")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Explore a model's latent space in the browser, on loopback: samples, mixtures, dimensions, your own images."""
    uri = str(Path(uri).absolute()) if uri and Path(uri).exists() else uri  # a folder, from where the user is
    prepare_tools(workspace := enter_workspace())
    from pipeline.commands.explore import serve

    serve(workspace, uri or f"models:/{read_params(workspace.params).register_.name}@champion", port, typer.echo)


@app.command()
def up() -> None:
    """Start MLflow's server, Prefect's and a worker, with the deployments of prefect.yaml, and return."""
    workspace = prepare_environment(enter_workspace())
    from pipeline.services.servers import up

    up(workspace, typer.echo)


@app.command()
def down() -> None:
    """Stop what `vaeline up` started; a training that it stops goes on after the next `vaeline up`."""
    workspace = enter_workspace()
    from pipeline.services.servers import down

    down(workspace, typer.echo)


@app.command()
def deploy() -> None:
    """Register the deployments of prefect.yaml with the server at PREFECT_API_URL, or that of `vaeline up`."""
    _use_prefect_server()
    from pipeline.services.worker import deploy

    deploy()
    typer.echo(f"deployments of prefect.yaml: registered at {redact(os.environ['PREFECT_API_URL'])}")


@app.command()
def worker() -> None:
    """Run deployments in this clone, going on with what a killed worker left."""
    workspace = _use_prefect_server()
    from pipeline.services.worker import work

    work(workspace)


def _use_prefect_server() -> Workspace:
    """Set PREFECT_API_URL, which Prefect reads when it is imported."""
    workspace = prepare_environment(enter_workspace())
    from pipeline.services.servers import known_prefect

    api = known_prefect(workspace)
    if api is None:
        raise UserError("PREFECT_API_URL: not set; name a Prefect server, or use `vaeline up`, which starts one")
    os.environ["PREFECT_API_URL"] = api
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    return workspace


@app.command()
def sync() -> None:
    """Send to MLflow what could not be sent while the stages ran."""
    workspace = prepare_environment()
    from vaeline.tracking.uploader import sync_all

    typer.echo(sync_all(workspace))


@app.command()
def doctor() -> None:
    """Check everything that a run needs, and print how to fix what is missing. Exit code 1 where a check fails."""
    prepare_tools(workspace := enter_workspace())
    from pipeline.commands.doctor import examine

    levels = set()
    for level, name, found in examine(workspace):
        typer.echo(f"{level:<4}  {name:<8}  {found}")
        levels.add(level)
    if "fail" in levels:
        raise typer.Exit(1)


app.registered_commands.sort(key=lambda command: command.callback.__module__ != __name__)  # the first to need first

if __name__ == "__main__":
    main()
