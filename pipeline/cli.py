"""The command `vaeline`: run the pipeline, look at it, send what was not sent, check the machine.

What a command needs is imported in it, so that each starts as fast as it can.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from pipeline.commands import lineage, operate, registry, sweep
from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.command import consume
from vaeline.command.program import run_program
from vaeline.config import read_params
from vaeline.io.workspace import PARAMS, current_workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

for topic in (registry, lineage, consume, operate, sweep):
    app.add_typer(topic.app)


def main() -> NoReturn:
    """Entry point: 0 done, 1 a clear line on stderr says what is wrong, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    run_program(app)


@app.callback()
def _vaeline() -> None:
    """Variational autoencoders, versioned by DVC, visible in MLflow, orchestrated by Prefect."""


@app.command()
def run() -> None:
    """Bring every stage of dvc.yaml up to date, as a Prefect flow."""
    enter_workspace()
    read_params(PARAMS)  # a typing mistake is told before any server starts
    prepare_environment()
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.flows.run"])  # above this module: imports point downwards


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def experiment(context: typer.Context, name: Annotated[str, typer.Argument()] = "") -> None:
    """Run a named experiment by `dvc exp run`, to which further options go (--temp, -S ...); no name: list them."""
    enter_workspace()
    from pipeline.sweep.experiments import overrides, read_experiments
    from vaeline.io.yaml_config import read_yaml

    experiments = read_experiments()
    if not name:
        for entry, content in experiments.items():
            typer.echo(f"{entry}\n    {content.about}")
        return
    changes = [argument for change in overrides(name, read_yaml(PARAMS), experiments) for argument in ("-S", change)]
    prepare_environment()
    os.execv(sys.executable, [sys.executable, "-m", "dvc", "exp", "run", *changes, *context.args])


@app.command()
def ui() -> None:
    """Serve the MLflow and Prefect web interfaces on this machine until Ctrl-C."""
    prepare_environment()
    from pipeline.services.servers import serve

    try:
        serve(typer.echo)
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
    """Check everything a run needs and say how to mend what is missing."""
    enter_workspace()
    prepare_environment()
    from pipeline.commands.doctor import examine

    failed = False
    for finding in examine():
        typer.echo(str(finding))
        failed |= finding.level == "fail"
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
