"""Summary of a run, read from its outputs: for the end of `vaeline run`, Prefect's artifact, MLflow's description."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.outputs import HEADLINE, measured, registration, sheets, with_errors
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import Workspace

THUMBNAIL = 480  # pixels, the longer side of a picture in the artifact


def summary(workspace: Workspace, version: str | None = None) -> str:
    """Where to look after a run, as lines of text."""
    lines, reports = [], workspace.reports
    if report := _report(workspace):
        values = with_errors(report["test"])
        width = max(map(len, values))
        lines += [f"test split, {report.get('protocol')} ({reports / 'metrics.json'}):"]
        lines += [f"  {name:<{width}}  {value}" for name, value in values.items()]
    if found := sheets(workspace):
        lines.append(f"samples:  {reports / 'samples'}/ ({', '.join(path.stem for path in found)})")
    if (reports / "index.html").exists():
        lines.append(f"report:   {reports / 'index.html'} (numbers, curves, pictures and theory on one page)")
    if decision := registration(workspace):
        lines.append(f"model:    {verdict(decision, version)}")
    lines.append("runs:     make ui (MLflow and Prefect in the browser)")
    return "\n".join(lines) + "\n"


def verdict(decision: Mapping[str, Any], version: str | None = None) -> str:
    """The registration in one line; promoted models are loaded by their alias."""
    name, word = decision["name"], decision["decision"]
    text = f"{name}{f' version {version}' if version else ''}: {word} ({'; '.join(decision['reasons'])})"
    return f'{text}, mlflow.pyfunc.load_model("models:/{name}@champion")' if word == "promoted" else text


def markdown(workspace: Workspace, outcomes: Mapping[str, str]) -> str:
    """The summary as Markdown, pictures inline as thumbnails: it can be read without this machine's files."""
    parts = ["## Stages", _table("stage", "outcome", outcomes)]
    if report := _report(workspace):
        parts += ["## Test split", str(report.get("protocol")), _table("metric", "value", with_errors(report["test"]))]
    if decision := registration(workspace):
        parts += ["## Registration", verdict(decision), f"model digest `{decision['digest']}`"]
    if (page := workspace.reports / "index.html").exists():
        parts += ["## Report", f"`{page}`, also an artifact of the model's MLflow run"]
    parts += [f"## {path.stem.replace('_', ' ').capitalize()}\n\n{_inline(path)}" for path in sheets(workspace)]
    return "\n\n".join(parts)


def note(report: Mapping[str, Any]) -> str:
    """The headline numbers as Markdown: the description of the run and of the version in MLflow."""
    test = report["test"]
    rows = [
        f"| {label} | {measured(test[key], test.get(f'{key}_se'))} | {unit} |"
        for key, (label, unit) in HEADLINE.items()
        if key in test
    ]
    where = "Curves, pictures and the theory: artifact `reports/index.html` of the run."
    return "\n".join(["| test split | | |", "| --- | --- | --- |", *rows, "", f"Pixels: {report['protocol']}. {where}"])


def _report(workspace: Workspace) -> dict[str, Any]:
    path = workspace.reports / "metrics.json"
    return read_metrics(path) if path.exists() else {}


def _table(first: str, second: str, rows: Mapping[str, object]) -> str:
    lines = [f"| {first} | {second} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)


def _inline(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
    return f"![{path.stem}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
