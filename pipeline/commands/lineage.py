"""`vaeline` trace, reproduce, report: what made a model, whether it comes out again, and the page that shows it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.io.workspace import current_workspace

if TYPE_CHECKING:
    from vaeline.registry.lineage import Lineage

app = typer.Typer()

Uri = Annotated[str, typer.Argument(metavar="URI", help="models:/NAME@champion or models:/NAME/VERSION")]
MOST_FILES = 20  # changed or untracked ones that are shown


@app.command()
def trace(uri: Uri, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Print what made a registered model: commit, params, data, experiment, runs, metrics, the gate's decision."""
    prepare_environment()
    from pipeline.report.summary import measured, with_errors
    from vaeline.registry.lineage import trace
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(current_workspace())
    with one_line_errors():
        lineage = trace(client, uri)
    content = lineage.content
    if as_json:
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    _print("", [(label, text) for label, text in rows(lineage) if text])
    test = content["evaluation"].get("test")
    if isinstance(test, dict):  # with standard errors
        metrics = {f"test_{name}": value for name, value in with_errors(test).items()}
    else:
        metrics = {name: measured(value) for name, value in sorted(content["metrics"].items())}
    _print("metrics", list(metrics.items()))
    _print("params", sorted(content["params"].items()))


@app.command()
def reproduce(
    uri: Uri,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder where it is.")] = False,
    run_changes: Annotated[
        bool,
        typer.Option("--run-changes", help="Run the recorded uncommitted changes, though no trusted key signed them."),
    ] = False,
) -> None:
    """Make a registered model again, apart from everything (in TMPDIR), and compare: exit 0 where it is identical."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.commands.reproduction import differences, reproduced
    from vaeline.registry.lineage import HISTORY, artifact, trace
    from vaeline.tracking.connection import connect, one_line_errors

    client = connect(workspace)
    with one_line_errors():
        lineage = trace(client, uri)
        run_id = lineage.content["mlflow_run"]["id"]
        history = artifact(client, client.get_run(run_id), HISTORY) if run_id else None
    with reproduced(lineage, workspace, lambda line: typer.echo(line, err=True), keep, run_changes) as project:
        found = differences(lineage, history, project)
    if found:
        typer.echo("\n".join([f"{lineage.uri}: not identical", *(f"  {line}" for line in found)]))
        raise typer.Exit(1)
    model, data = lineage.content["model"], lineage.content["data"]
    typer.echo(f"{lineage.uri}: identical\n  model digest {model['model_digest']}\n  data digest  {data['digest']}")
    typer.echo(f"  reports/history.csv: {'identical too' if history else 'not kept by its run'}")


@app.command()
def report() -> None:
    """Write reports/index.html: the run on one page, also attached to its MLflow run."""
    enter_workspace()
    prepare_environment()
    from pipeline.stages import report as stage

    stage.main()
    typer.echo("reports/index.html")


def rows(lineage: "Lineage") -> Iterator[tuple[str, str]]:
    """Labels and texts, of one or several lines, that show a lineage; empty texts where something is not known."""
    from pipeline.report.summary import measured

    content = lineage.content
    model, decision, code, data, run = (content[key] for key in ("model", "decision", "code", "data", "mlflow_run"))
    yield "model", " ".join([lineage.uri, *(f"@{alias}" for alias in model["aliases"])])
    yield "digest", model["model_digest"]
    yield "kind", ", ".join(filter(None, (model["likelihood"], model["objective"])))
    yield "decision", "\n".join(filter(None, (decision["decision"], *decision["reasons"])))
    yield "gate", ", ".join(f"{name} {measured(value)}" for name, value in decision["gate"].items())
    lines = ["none in MLflow: its run was deleted"]
    if run["id"]:
        lines = [f"{run['id']} (MLflow)", f"{run['name']}, {run['status']}"]
        if run["started"]:
            start = datetime.fromtimestamp(run["started"] / 1000, UTC)
            took = f", {(run['ended'] - run['started']) / 1000:,.0f} s" if run["ended"] else ""
            lines.append(f"{start:%Y-%m-%d %H:%M} UTC{took}")
        if run["made_from"] == "outputs":
            lines.append("made when the model was registered here: commit and versions are those of then")
    yield "run", "\n".join(lines)
    state = "with uncommitted changes" if code["dirty"] else "nothing uncommitted"
    yield "commit", f"{code['commit']}\n{state}" if code["commit"] else "not in a git repository" if run["id"] else ""
    if diff := code["diff"]:
        size = f"{diff['bytes']:,} bytes in the run's git/uncommitted.diff{', cut' if diff['cut'] else ''}"
        files = [f"{name} +{lines['added']} -{lines['removed']}" for name, lines in diff["files"].items()]
        yield "changes", "\n".join([size, *_first(files)])
    yield "untracked", "\n".join(_first(code["untracked"]))
    if "name" in data:
        images = ", ".join(f"{split} {count:,}" for split, count in data["images"].items())
        yield "data", f"{data['name']}: images of {' x '.join(map(str, data['shape']))}; {images}"
    yield "data digest", data["digest"]
    yield "experiment", content["dvc_experiment"] and f"{content['dvc_experiment']} (DVC)"
    yield "flow run", content["prefect_flow_run"] and f"{content['prefect_flow_run']} (Prefect)"
    yield "machine", ", ".join(f"{name} {value}" for name, value in sorted(content["machine"].items()))
    yield "versions", ", ".join(f"{name} {value}" for name, value in content["versions"].items())


def _first(names: list[str]) -> list[str]:
    more = len(names) - MOST_FILES
    return names[:MOST_FILES] + ([f"... and {more} more"] if more > 0 else [])


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    """Labels and texts in two columns, folded to the terminal's width, without what a terminal obeys."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if title else "bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)) for text in row))
    if title and rows:
        console.print(f"\n{title}", style="bold")
    console.print(table)
