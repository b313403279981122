"""The command `vaeline` in a workspace. A command imports what it needs when it runs, so that each starts fast."""

from typing import Annotated, NoReturn

import typer

from pipeline.commands import lineage, operate, registry, sweep
from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.command import consume
from vaeline.command.program import run_and_leave, run_program
from vaeline.config import read_params
from vaeline.io.workspace import current_workspace

app = consume.command_line("Variational autoencoders, versioned by DVC, visible in MLflow, orchestrated by Prefect.")
for topic in (registry, lineage, operate, sweep):
    app.add_typer(topic.app)


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 error, one line on stderr, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    run_program(app)


@app.command()
def run() -> None:
    """Bring every stage of dvc.yaml up to date, as a Prefect flow."""
    read_params(enter_workspace().params)  # a typing mistake is reported before any server starts
    prepare_environment()
    from pipeline.flows.run import main

    run_and_leave(main)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def experiment(context: typer.Context, name: Annotated[str, typer.Argument()] = "") -> None:
    """Run a named experiment by `dvc exp run`, which gets further options (--temp, -S ...); no name: list them."""
    workspace = enter_workspace()
    from pipeline.services.dvc_command import run_attached
    from pipeline.sweep.experiments import EXPERIMENTS, experiment_overrides, read_experiments
    from vaeline.io.yaml_config import read_yaml

    experiments = read_experiments(workspace.root / EXPERIMENTS)
    if not name:
        for entry, content in experiments.items():
            typer.echo(f"{entry}\n    {content.about}")
        return
    changes = experiment_overrides(name, read_yaml(workspace.params), experiments)
    prepare_environment()
    raise typer.Exit(run_attached(["dvc", "exp", "run", *changes, *context.args]))


@app.command()
def ui() -> None:
    """Serve the MLflow and Prefect web interfaces on this machine until Ctrl-C."""
    prepare_environment()
    from pipeline.services.up import serve

    try:
        serve(current_workspace(), typer.echo)
    except KeyboardInterrupt:
        typer.echo("stopped")


@app.command()
def sync() -> None:
    """Send to MLflow what could not be sent while the stages ran."""
    prepare_environment()
    from vaeline.tracking.sync import sync_all

    typer.echo(str(sync_all(current_workspace())))


@app.command()
def doctor() -> None:
    """Check everything that a run needs, and print how to fix what is missing. Exit code 1 where a check fails."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.commands.doctor import examine

    levels = set()
    for level, name, found in examine(workspace):
        typer.echo(f"{level:<4}  {name:<8}  {found}")
        levels.add(level)
    if "fail" in levels:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
