"""`vaeline` trace, compare, reproduce, report: what made a model, its likes, whether it comes out again, its page."""

from typing import Annotated

import typer

from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.command.main import Json, print_json, printable
from vaeline.io.workspace import current_workspace

app = typer.Typer()

Uri = Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION")]


@app.command()
def trace(uri: Uri, as_json: Json = False) -> None:
    """Print what made a registered model: commit, params, data, experiment, runs, metrics, the gate's decision."""
    prepare_environment()
    from vaeline.registry.lineage import flat, trace
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(current_workspace())
    with one_line_errors():
        content = trace(client, uri).content
    if as_json:
        print_json(content)
        return
    from pipeline.report.summary import measured

    for name, value in flat(content).items():
        items = [measured(item) for item in (value if isinstance(value, list) else [value]) if item not in (None, "")]
        if items:
            typer.echo(printable(f"{name:<36} {', '.join(items)}"))


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="MODEL MODEL...", help="models:/NAME/3, a run's id, a DVC experiment")
    ],
    as_json: Json = False,
) -> None:
    """Compare models: the params that differ, and the test ELBOs with their paired differences to the first one's."""
    if len(names) < 2:
        raise typer.BadParameter("name at least two models")
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.commands.compare import compare
    from pipeline.commands.tables import show_comparison

    rows = compare(workspace, names)
    print_json(rows) if as_json else show_comparison(rows)


@app.command()
def reproduce(
    uri: Uri,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder where it is.")] = False,
    run_changes: Annotated[
        bool, typer.Option("--run-changes", help="Run uncommitted changes that no trusted key signed.")
    ] = False,
) -> None:
    """Make a registered model again, apart from everything (in TMPDIR), and compare: exit 0 where it is identical."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.commands.reproduction import differences, reproduced
    from vaeline.registry.lineage import trace
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(workspace)
    with one_line_errors():
        lineage = trace(client, uri)
    with reproduced(lineage, workspace, lambda line: typer.echo(line, err=True), keep, run_changes) as project:
        found = differences(lineage, project)
    if found:
        typer.echo("\n".join([f"{lineage.uri}: not identical", *(f"  {line}" for line in found)]))
        raise typer.Exit(1)
    model, data = lineage.content["model"], lineage.content["data"]
    typer.echo(f"{lineage.uri}: identical\n  model digest {model['model_digest']}\n  data digest  {data['digest']}")
    typer.echo(f"  reports/history.csv: {'identical too' if lineage.history else 'not kept by its run'}")


@app.command()
def report() -> None:
    """Write reports/index.html: the run on one page, also attached to its MLflow run."""
    enter_workspace()
    prepare_environment()
    from pipeline.stages import report as stage

    stage.main()
    typer.echo("reports/index.html")
