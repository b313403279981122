"""`vaeline` trace, reproduce, report: what made a model, whether it comes out again, and the page that shows it."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.io.workspace import current_workspace

app = typer.Typer()

Uri = Annotated[str, typer.Argument(metavar="URI", help="models:/NAME@champion or models:/NAME/VERSION")]


@app.command()
def trace(uri: Uri, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Print what made a registered model: commit, params, data, experiment, runs, metrics, the gate's decision."""
    prepare_environment()
    from vaeline.registry.lineage import trace
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(current_workspace())
    with one_line_errors():
        lineage = trace(client, uri)
    if as_json:
        typer.echo(json.dumps(lineage.content(), indent=2, ensure_ascii=False))
        return
    from pipeline.commands import lineage_rows

    _print("", lineage_rows.rows(lineage))
    _print("metrics", list(lineage_rows.metrics(lineage).items()))
    _print("params", sorted(lineage.params.items()))


@app.command()
def reproduce(
    uri: Uri,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder where it is.")] = False,
) -> None:
    """Make a registered model again, apart from everything (in TMPDIR), and compare: exit 0 where it is identical."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.commands.model_differences import model_differences
    from pipeline.commands.reproduction import reproduced
    from vaeline.io.digests import model_digest
    from vaeline.registry.lineage import HISTORY, artifact, describe
    from vaeline.registry.stored import download_model
    from vaeline.registry.versions import find_version_at
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(workspace)
    with tempfile.TemporaryDirectory() as temporary:
        with one_line_errors():
            version = find_version_at(client, uri)
            lineage, stored = describe(client, version), download_model(version, Path(temporary))
            history = artifact(client, lineage.run_id, HISTORY) if lineage.run_id else None
        with reproduced(lineage, workspace, lambda line: typer.echo(line, err=True), keep) as project:
            found = model_differences(lineage, stored, history, project)
        digest = model_digest(stored)
    if found:
        typer.echo("\n".join([f"{lineage.uri}: not identical", *(f"  {line}" for line in found)]))
        raise typer.Exit(1)
    typer.echo(f"{lineage.uri}: identical\n  model digest {digest}\n  data digest  {lineage.tag('data_digest')}")
    typer.echo(f"  reports/history.csv: {'identical too' if history else 'not kept by its run'}")


@app.command()
def report() -> None:
    """Write reports/index.html: the run on one page, also attached to its MLflow run."""
    enter_workspace()
    prepare_environment()
    from pipeline.stages import report as stage

    stage.main()
    typer.echo("reports/index.html")


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    """Labels and texts in two columns, folded to the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if title else "bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    if title and rows:
        console.print(f"\n{title}", style="bold")
    console.print(table)
