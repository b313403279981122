"""`reports/index.html`: one self-contained page of a run, from the stages' outputs alone.

It is content: no run id, version, time, host or path; `vaeline trace` reports those of a registered model.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from pipeline.report.summary import data_uri, has_explorer, headline, latent_numbers, registration, with_errors
from vaeline.config import Params
from vaeline.config.train import Train
from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.digests import model_digest
from vaeline.io.workspace import Workspace
from vaeline.plotting.charts import MOST_BARS, Picture, Points, bars, chart, known, lines
from vaeline.tracking.provenance import flatten_metrics, flatten_params
from vaeline.training.history import Epoch, best, read_history

SIZE = (3.6, 2.4)  # of a chart, inches
CAPTIONS = {  # of the stage sample's sheets
    "prior_samples": "Samples drawn from the prior",
    "reconstructions": "Test images and their reconstructions",
    "interpolation": "Interpolations between test images",
    "mixtures": "Mixtures of three test images",
    "traversals": "Traversals of latent dimensions",
}


def render(workspace: Workspace, params: Params) -> str:
    """The page as HTML; the template escapes every text. Raises UserError where an output is missing or damaged."""
    reports = workspace.reports
    report, rows = read_metrics(reports / "metrics.json"), read_history(reports / "history.csv")
    decision = {"decision": "not registered", "reasons": [], "name": params.register_.name} | registration(workspace)
    data = read_output(workspace.model / "config.json", lambda content: json.loads(content)["data"]["digest"])
    samples = reports / "samples"
    environment = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined)
    source = partial(data_uri, most_bytes=200_000, longest=1400)
    environment.filters |= {"source": source, "minus": minus, "words": words, "formulas": formulas}
    return environment.get_template("run.html").render(
        title=f"{params.register_.name}: {decision['decision']}",
        registration=decision,
        gate=_words(with_errors(flatten_metrics(decision.get("gate", {})))),
        report=report,
        numbers=headline(report["test"]),
        curves=training_curves(rows, params.train),
        kept=best(rows, params.train.beta).epoch,
        kl=kl_bars(reports / "kl_per_dimension.csv"),
        latent=_words(latent_numbers(report.get("latent", {}))),
        explorer=has_explorer(workspace),
        sheets=[(caption, read_output(samples / f"{name}.png")) for name, caption in CAPTIONS.items()],
        claims=read_claims(reports / "theory"),
        origin={"model digest": model_digest(workspace.model), "data digest": data, "data": params.data.title},
        params=sorted((key, _without_folder(value)) for key, value in flatten_params(params).items()),
    )


def minus(text: str) -> str:
    """The text with the sign of each negative number as a minus; hyphens stay."""
    return re.sub(r"(?<![\w)-])-(?=\d)", "−", text)


def words(text: str) -> Markup:
    """A sentence of a claim: minus signs, `code` as such."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(minus(text)))))


def formulas(equation: str) -> list[tuple[Markup, str]]:
    """Each line of a claim's equation as MathML, which browsers typeset by themselves, and what is said of it."""
    found = []
    for line in equation.strip().splitlines():
        latex, _, note = line.partition(" % ")
        mathml = convert(latex, display="block").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
        found.append((Markup(mathml), note))
    return found


def training_curves(rows: Sequence[Epoch], options: Train) -> list[Picture]:
    """The bound, its terms, and σ and β where they changed, by epoch; the kept epoch is marked."""
    bound = "IWAE bound" if options.objective == "iwae" else "ELBO"
    found: list[tuple[str, str, Mapping[str, Points]]] = []
    for key, title in (("elbo", bound), ("reconstruction", "Reconstruction term"), ("kl", "KL")):
        by_split = {
            split: [(row.epoch, getattr(row, f"{split}_{key}")) for row in rows] for split in ("train", "validation")
        }
        found.append((title, "nats per image", by_split))
    for key, title, unit in (("sigma", "σ of the likelihood", "pixels on [0, 1]"), ("beta", "β, the KL's weight", "")):
        if len({getattr(row, key) for row in rows}) > 1:
            found.append((title, unit, {key: [(row.epoch, getattr(row, key)) for row in rows]}))
    pictures = []
    for title, unit, series in found:
        if ends := [f"{name} from {_short(p[0][1])} to {_short(p[-1][1])}" for name, p in known(series).items()]:
            caption = f"{title}{f', {unit}' if unit else ''}, by epoch: {'; '.join(ends)}"
            draw = partial(_draw_curve, title=title, unit=unit, series=series, kept=best(rows, options.beta).epoch)
            pictures.append(chart(title, caption, draw, size=SIZE))
    return pictures


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _draw_curve(axes: Any, title: str, unit: str, series: Mapping[str, Points], kept: int) -> None:
    lines(axes, series, kept)
    axes.set(title=title, xlabel="epoch", ylabel=unit)


def kl_bars(path: Path) -> Picture | None:
    """The KL of each latent dimension, from reports/kl_per_dimension.csv; None of an autoencoder."""
    values = read_output(path, _kl_by_dimension)
    if not values:
        return None
    caption = (
        f"KL of each of {len(values)} latent dimensions to the prior's marginal on the test split by falling size, at "
        f"most {MOST_BARS}; the largest {max(values.values()):.4g} nats. Their sum is the KL under N(0, I)"
    )

    def draw(axes: Any) -> None:
        bars(axes, values)
        axes.set(title="KL of each latent dimension", ylabel="nats")

    return chart("kl", caption, draw, size=SIZE)


def read_claims(folder: Path) -> list[dict[str, Any]]:
    """Content of claims.json in reports/theory, its pictures with their `png`."""
    claims: list[dict[str, Any]] = read_output(folder / "claims.json", _claims)
    for picture in (picture for claim in claims for picture in claim["pictures"]):
        picture["png"] = read_output(folder / f"{picture['name']}.png")
    return claims


def read_output(path: Path, parse: Callable[[bytes], Any] = bytes) -> Any:
    """What `parse` makes of a stage's output. Raises UserError where that is missing or damaged."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run `dvc repro`") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: is not what its stage writes; run `dvc repro`") from None


def _claims(content: bytes) -> list[dict[str, Any]]:
    return [claim | {"pictures": [dict(picture) for picture in claim["pictures"]]} for claim in json.loads(content)]


def _kl_by_dimension(content: bytes) -> dict[str, float]:
    return {f"z{row['dimension']}": float(row["kl"]) for row in csv.DictReader(content.decode().splitlines())}


def _without_folder(value: str) -> str:
    """A param's value; of an absolute path its last name, as the page may go to others."""
    path = PurePath(value)
    return f".../{path.name}" if path.is_absolute() else value


def _words(values: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("/", " ").replace("_", " "): text for name, text in values.items()}
