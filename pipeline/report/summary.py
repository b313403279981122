"""What a run leaves to look at, read from its outputs: for the end of `vaeline run` and for Prefect's artifact."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.workspace import REPORTS

METRICS = REPORTS / "metrics.json"
REGISTRATION = REPORTS / "registration.json"
SAMPLES = REPORTS / "samples"
THEORY = REPORTS / "theory" / "theory.md"
PAGE = REPORTS / "index.html"  # pipeline/report/page.py writes it
THUMBNAIL = 480  # pixels, the longer side of a picture in the artifact


def metrics(path: Path = METRICS) -> dict[str, str]:
    """The test split's metrics, each with its standard error where it has one; empty where there are none."""
    return with_errors(read(path).get("test", {}))


def with_errors(test: Mapping[str, Any]) -> dict[str, str]:
    """Numbers as text, each with the standard error that stands beside it as `*_se`."""
    errors = {n.removesuffix("_se"): f" ± {value:.2g}" for n, value in test.items() if n.endswith("_se") and value}
    return {name: _number(test[name]) + errors.get(name, "") for name in test if not name.endswith("_se")}


def protocol(path: Path = METRICS) -> str:
    """How pixels were scored, which belongs beside every likelihood."""
    return str(read(path).get("protocol", "pixels as prepared"))


def registration(path: Path = REGISTRATION) -> dict[str, Any]:
    """What the stage register decided; empty where it has not run."""
    return read(path)


def summary(version: str | None = None) -> str:
    """Where to look after a run, as lines of text."""
    lines = []
    if values := metrics():
        width = max(map(len, values))
        lines += [
            f"test split, {protocol()} ({METRICS}):",
            *(f"  {name:<{width}}  {value}" for name, value in values.items()),
        ]
    if sheets := pictures():
        lines.append(f"samples:  {SAMPLES}/ ({', '.join(path.stem for path in sheets)})")
    if THEORY.exists():
        lines.append(f"theory:   {THEORY} (and {THEORY.with_suffix('.html').name})")
    if PAGE.exists():
        lines.append(f"report:   {PAGE} (all of it on one page)")
    if decision := registration():
        lines.append(f"model:    {verdict(decision, version)}")
    lines.append("runs:     make ui (MLflow and Prefect in the browser)")
    return "\n".join(lines) + "\n"


def verdict(decision: Mapping[str, Any], version: str | None = None) -> str:
    """The registration in one line; promoted models are loaded by their alias."""
    name, word = decision["name"], decision["decision"]
    text = f"{name}{f' version {version}' if version else ''}: {word} ({'; '.join(decision['reasons'])})"
    return f'{text}, mlflow.pyfunc.load_model("models:/{name}@champion")' if word == "promoted" else text


def pictures(folder: Path = SAMPLES) -> list[Path]:
    """The sample sheets."""
    return sorted(folder.glob("*.png"))


def markdown(outcomes: Mapping[str, str], page: str = "") -> str:
    """The report as Markdown, pictures inline as thumbnails: it can be read without this machine's files.

    `page` says where the whole report is.
    """
    parts = ["## Stages", _table("stage", "outcome", outcomes)]
    if page:
        parts += ["## Run report", page]
    if values := metrics():
        parts += ["## Test split", protocol(), _table("metric", "value", values)]
    if decision := registration():
        parts += ["## Registration", verdict(decision), f"model digest `{decision['digest']}`"]
    parts += [f"## {path.stem.replace('_', ' ').capitalize()}\n\n{_inline(path)}" for path in pictures()]
    return "\n\n".join(parts)


def read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is none. Raises UserError where it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not what its stage writes; run that again (dvc repro --force)")
    return content


def _number(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


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
