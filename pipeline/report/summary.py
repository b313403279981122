"""Numbers and decision of a run from its outputs, as text: for the page, the end of `vaeline run`, Prefect, MLflow."""

import base64
import io
import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import Workspace
from vaeline.tracking.provenance import flatten_metrics

HEADLINE = {  # of the test split: label, unit
    "elbo": ("ELBO", "nats per image"),
    "reconstruction": ("reconstruction term", "nats per image"),
    "kl": ("KL to the prior", "nats per image"),
    "nll": ("NLL, −log p(x)", "nats per image"),
    "gap": ("log p(x) − ELBO", "nats per image"),
    "bits_per_dimension": ("bits/dim by the ELBO", "bits per pixel value"),
    "bits_per_dimension_nll": ("bits/dim by the NLL", "bits per pixel value"),
    "active_units": ("active units", "latent dimensions"),
    "psnr": ("PSNR", "dB, mean of each image's"),
    "ssim": ("SSIM", "at most 1"),
    "lpips": ("LPIPS", "features of VGG-16"),
    "mse": ("MSE", "pixels on [0, 1]"),
}
QUALITY = 80  # of a WebP
SATURATED = 0.05  # share of images at which log N and not the model decides the mutual information


def measured(value: object, error: object = None) -> str:
    """A number as text, with its standard error where it has one, both to the error's second digit."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if not isinstance(error, float) or not math.isfinite(error) or error <= 0:
        return f"{value:.5g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def with_errors(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Numbers as text, each with the standard error that stands beside it as `*_se`."""
    names = [name for name in numbers if not name.endswith("_se")]
    return {name: measured(numbers[name], numbers.get(f"{name}_se")) for name in names}


def headline(test: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and unit of the test split's main numbers."""
    values = with_errors(test)
    return [(label, values[key], unit) for key, (label, unit) in HEADLINE.items() if key in values]


def latent_numbers(latent: Mapping[str, Any]) -> dict[str, Any]:
    """The section `latent` of metrics.json flat, as text: where too few images decide, estimates are bounds."""
    values = with_errors(flatten_metrics(latent))
    if latent.get("saturation", 0.0) > SATURATED:
        for name, sign in (("mutual_information", "≥"), ("total_correlation", "≤"), ("marginal_kl", "≤")):
            values[name] = f"{sign} {measured(latent[name])}"
    return values


def has_explorer(workspace: Workspace) -> bool:
    """Whether reports/explorer.html holds the decoder, and not the reason why it does not."""
    path = workspace.reports / "explorer.html"
    return path.exists() and b"<canvas" in path.read_bytes()


def registration(workspace: Workspace) -> dict[str, Any]:
    """The decision of the stage register; empty where it has not run. Raises UserError where it is something else."""
    path = workspace.reports / "registration.json"
    return read_metrics(path, "register") if path.exists() else {}


def summary(workspace: Workspace, version: str | None = None) -> str:
    """Where to look after a run, as lines of text."""
    lines, reports, report = [], workspace.reports, _report(workspace)
    if report:
        lines += test_lines(report)
    if sheets := _sheets(workspace):
        lines.append(f"samples:  {reports / 'samples'}/ ({', '.join(path.stem for path in sheets)})")
    if has_explorer(workspace):
        lines.append(f"explore:  {reports / 'explorer.html'} (the latent space; with your images: vaeline explore)")
    elif report:
        lines.append("explore:  vaeline explore (the latent space, in the browser)")
    if (reports / "index.html").exists():
        lines.append(f"report:   {reports / 'index.html'} (numbers, curves, pictures and theory on one page)")
    if decision := registration(workspace):
        lines.append(f"model:    {verdict(decision, version)}")
    return "".join(f"{line}\n" for line in lines)


def test_lines(report: Mapping[str, Any]) -> list[str]:
    """The test split's numbers, in nats per image unless a unit stands there, and how they were measured."""
    values = with_errors(report["test"])
    width = max(map(len, values))
    heading = f"test split, {report.get('protocol')} (reports/metrics.json):"
    units = {name: unit for name, (_, unit) in HEADLINE.items() if unit != "nats per image"}
    return [heading, *(f"  {name:<{width}}  {value}  {units.get(name, '')}".rstrip() for name, value in values.items())]


def markdown(workspace: Workspace, outcomes: Mapping[str, str]) -> str:
    """The summary as Markdown, pictures inline as thumbnails: it can be read without this machine's files."""
    parts, report = ["## Stages", _table(("stage", "outcome"), outcomes.items())], _report(workspace)
    if report:
        parts += ["## Numbers", note(report)]
    if decision := registration(workspace):
        parts += ["## Registration", plain(verdict(decision)), f"model digest `{decision['digest']}`"]
    for path in _sheets(workspace):
        source = data_uri(path.read_bytes(), most_bytes=20_000, longest=480)
        parts += [f"## {path.stem.replace('_', ' ').capitalize()}", f"![{path.stem}]({source})"]
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Text in which Markdown sees neither HTML nor a link: what is named in it may be anybody's."""
    return escape(text, quote=False).replace("[", "&#91;")


def sentence(report: Mapping[str, Any], data: str) -> str:
    """The main numbers in a sentence: the description of the version in MLflow."""
    values = with_errors(report["test"])
    forms = {
        "elbo": "ELBO {} nats",
        "nll": "NLL {} nats",
        "bits_per_dimension_nll": "{} bits/dim",
        "active_units": "{} active units",
        "psnr": "PSNR {} dB",
    }
    found = ", ".join(form.format(values[key]) for key, form in forms.items() if key in values)
    return f"On {data}, per test image: {found}."


def note(report: Mapping[str, Any]) -> str:
    """The headline numbers as Markdown: the description of the run in MLflow."""
    where = "Curves, pictures and the theory: artifact `reports/index.html` of the run."
    return f"{_table(('test split', '', ''), headline(report['test']))}\n\nPixels: {report['protocol']}. {where}"


def data_uri(png: bytes, most_bytes: int, longest: int) -> str:
    """A picture inside a text; one of more bytes becomes a WebP of at most `longest` pixels a side."""
    if len(png) <= most_bytes:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.thumbnail((longest, longest))
        picture.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _report(workspace: Workspace) -> dict[str, Any]:
    path = workspace.reports / "metrics.json"
    return read_metrics(path) if path.exists() else {}


def _sheets(workspace: Workspace) -> list[Path]:
    return sorted((workspace.reports / "samples").glob("*.png"))


def verdict(decision: Mapping[str, Any], version: str | None = None) -> str:
    """The registration in one line; promoted models are loaded by their alias."""
    name, word = decision["name"], decision["decision"]
    text = f"{name}{f' version {version}' if version else ''}: {word} ({'; '.join(decision['reasons'])})"
    return f'{text}, mlflow.pyfunc.load_model("models:/{name}@champion")' if word == "promoted" else text


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
