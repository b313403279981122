"""`reports/index.html`: one self-contained page of a run, from the stages' outputs alone.

It is content: no run id, version, time, host or path; `vaeline trace` reports those of a registered model.
"""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import curves
from pipeline.report.outputs import HEADLINE, measured, registration, sheets, with_errors
from vaeline.config import Params
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.digests import model_digest
from vaeline.io.workspace import Workspace
from vaeline.theory.claim import read_claims
from vaeline.tracking.provenance import flatten_metrics, flatten_params
from vaeline.training.history import best, read_history

MOST_BYTES = 200_000  # of a PNG file on the page; a larger one becomes a smaller WebP
LONGEST, QUALITY = 1400, 80  # pixels, WebP's
CAPTIONS = {
    "prior_samples": "Samples drawn from the prior",
    "reconstructions": "Test images and their reconstructions",
    "interpolation": "Interpolations between test images",
    "mixtures": "Mixtures of three test images",
    "traversals": "Traversals of latent dimensions",
}


def render(workspace: Workspace, params: Params) -> str:
    """The page as HTML; the template escapes every text. Raises UserError where an output is missing or damaged."""
    reports = workspace.reports
    report, rows, decision = (
        read_metrics(reports / "metrics.json"),
        read_history(reports / "history.csv"),
        registration(workspace),
    )
    model = json.loads((workspace.model / "config.json").read_text(encoding="utf-8"))
    order = list(CAPTIONS)
    named = sorted(
        sheets(workspace), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.stem)
    )
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"source": data_uri, "minus": lambda text: text.replace("-", "−")}
    return environment.get_template("run.html").render(
        title=f"{params.register_.name}: {decision.get('decision', 'not registered')}",
        registration=decision,
        gate=_pairs(decision.get("gate", {})),
        report=report,
        numbers=[
            (label, measured(report["test"][key], report["test"].get(f"{key}_se")), unit)
            for key, (label, unit) in HEADLINE.items()
            if key in report["test"]
        ],
        curves=curves.training_curves(rows, params.train),
        constants=curves.constants(rows),
        kept=best(rows, params.train.beta).epoch,
        kl=curves.kl_bars(reports / "kl_per_dimension.csv"),
        latent=_pairs(report.get("latent", {})),
        sheets=[(CAPTIONS.get(path.stem, path.stem), path.read_bytes()) for path in named],
        claims=read_claims(reports / "theory"),
        origin={
            "model digest": model_digest(workspace.model),
            "data digest": model["data"]["digest"],
            "data": model["data"]["source"],
        },
        params=sorted(flatten_params(params).items()),
    )


def data_uri(png: bytes) -> str:
    """A picture as the page holds it."""
    if len(png) <= MOST_BYTES:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.thumbnail((LONGEST, LONGEST))
        picture.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _pairs(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Names and values of nested numbers, each with its standard error."""
    return {
        name.replace("/", " ").replace("_", " "): text for name, text in with_errors(flatten_metrics(numbers)).items()
    }
