"""`vaeline` models, history, promote, rollback, trace, compare, reproduce: registered models, their origin."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.command.main import Json, print_json, printable
from vaeline.io.workspace import Workspace

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="The registered model's name.", show_default=False)]
Uri = Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.", show_default=False)]


@app.command()
def models(name: Annotated[str, typer.Argument(help="Only this one.")] = "", as_json: Json = False) -> None:
    """Show the registered models: the champion, each version's measurements, and the gate's decisions."""
    with _registry() as (client, _):
        from pipeline.commands.tables import show_versions, version_rows
        from vaeline.registry.versions import find_models, find_versions

        found = find_models(client, name or None)
        content = [{"name": m.name, "versions": version_rows(m, find_versions(client, m.name))} for m in found]
    if as_json:
        print_json(content)
        return
    for model in content:
        show_versions(model["name"], model["versions"])
    if not content:
        typer.echo("no model is registered yet; `vaeline run` registers the first")


@app.command()
def history(name: Name, as_json: Json = False) -> None:
    """Show the champions of a registered model: since when, by whom and why."""
    with _registry() as (client, _):
        from pipeline.commands.tables import history_rows, show_history
        from vaeline.registry.champion_history import read_history
        from vaeline.registry.versions import find_models

        rows = history_rows(read_history(find_models(client, name)[0]))
    if as_json:
        print_json({"name": name, "entries": rows})
    elif rows:
        show_history(name, rows)
    else:
        typer.echo(f"{name}: nothing has been decided yet")


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="Its version.", show_default=False, min=1, max=999_999_999)],
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate decides; needs --reason.")] = False,
    reason: Reason = "",
) -> None:
    """Make a version champion: judged on data/prepared as a new model is, or by force."""
    if force != bool(reason.strip()):
        raise typer.BadParameter("--force and --reason TEXT go together: the history keeps why the gate was overruled")
    if not force:
        enter_workspace()  # whose data judge it
    with _registry() as (client, workspace):
        from vaeline.registry.champion import promote

        evaluator = None
        if not force:
            from pipeline.stages.register import gate_evaluator

            evaluator = gate_evaluator(workspace)
        decision = promote(client, workspace, name, version, evaluator, reason.strip())
    state = f"is champion: {'; '.join(decision.reasons)}" if decision else "is the champion already"
    typer.echo(f"{name} version {version} {state}")


@app.command()
def rollback(name: Name, reason: Reason = "") -> None:
    """Make the champion before the present one champion again; once more goes further back."""
    with _registry() as (client, workspace):
        from vaeline.registry.champion import rollback

        before, now = rollback(client, workspace, name, reason.strip())
    typer.echo(f"{name} version {now} is champion again{f', version {before} is not any more' if before else ''}")


@app.command()
def trace(uri: Uri, as_json: Json = False) -> None:
    """Print what made a registered model: commit, params, data, experiment, runs, metrics, the gate's decision."""
    with _registry() as (client, _):
        from vaeline.registry.lineage import trace

        content = trace(client, uri).content
    if as_json:
        print_json(content)
        return
    from pipeline.report.summary import measured
    from vaeline.tracking.provenance import leaves

    for name, value in leaves(content):
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
    workspace = prepare_environment(enter_workspace())
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
    enter_workspace()
    with _registry() as (client, workspace):
        from pipeline.commands.reproduction import differences, reproduced
        from vaeline.registry.lineage import trace

        lineage = trace(client, uri)
    with reproduced(lineage, workspace, lambda line: typer.echo(line, err=True), keep, run_changes) as project:
        found = differences(lineage, project)
    if found:
        typer.echo("\n".join([f"{lineage.uri}: not identical", *(f"  {line}" for line in found)]))
        raise typer.Exit(1)
    model, data = lineage.content["model"], lineage.content["data"]
    typer.echo(f"{lineage.uri}: identical\n  model digest {model['model_digest']}\n  data digest  {data['digest']}")
    typer.echo(f"  reports/history.csv: {'identical too' if lineage.history else 'not kept by its run'}")


@contextmanager
def _registry() -> Iterator[tuple[Any, Workspace]]:
    """Client of the registry: from anywhere that of MLFLOW_TRACKING_URI, without it the workspace's own."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        enter_workspace()
    workspace = prepare_environment()
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(workspace, tables=False)
    with one_line_errors():
        yield client, workspace
