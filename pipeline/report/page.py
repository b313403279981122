"""`reports/index.html`: one self-contained page a run, made from the stages' outputs and the model's lineage.

It names runs, hosts' versions and times, so it is no output of a DVC stage: the stage register writes it at its end,
`vaeline report` and the flow write it where it is missing or older than what it shows.
"""

import html
import json
import logging
import re
from pathlib import Path

from pipeline.report import curves, summary
from pipeline.report.claims import PAGE as CLAIMS
from pipeline.report.rendering import headline, render
from vaeline.config import Params
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import file_digest, model_digest, value_digest
from vaeline.io.workspace import MODEL, current_workspace
from vaeline.registry.lineage import Lineage
from vaeline.tracking.connection import redact, tracking_uri
from vaeline.tracking.runs import open_model_run, run_start

log = logging.getLogger(__name__)

PAGE = summary.PAGE
FACTS = re.compile(r'<meta name="vaeline-facts" content="([^"]*)">')


def write(params: Params, lineage: Lineage | None) -> Path:
    """Write the page for what lies in models/ and reports/; without a lineage it says so."""
    write_file(PAGE, render(params, lineage, json.dumps(_facts(params, lineage))).encode())
    return PAGE


def publish(params: Params) -> Path:
    """Write the page with the lineage of the registered model, and keep a copy in the model's run.

    Raises UserError where there is no model.
    """
    from vaeline.registry.lineage import trace_digest
    from vaeline.tracking.connection import connect, one_line_errors

    if not (MODEL / "config.json").is_file():
        raise UserError(f"{MODEL}: there is no model yet; run the stage train")
    digest, lineage = model_digest(MODEL), None
    try:
        client = connect(current_workspace(), timeout_s=5, retries=0)
        with one_line_errors():
            lineage = trace_digest(client, params.register_.name, digest)
    except UserError as error:
        log.warning("the page shows no lineage: %s", error)
    path = write(params, lineage)
    with open_model_run(current_workspace(), digest, run_start(current_workspace(), params)) as run:
        run.artifact(path, "reports")
    return path


def note() -> str:
    """The headlines as Markdown: the description of the run and of the version in MLflow."""
    test = summary.read(summary.METRICS).get("test", {})
    rows = [f"| {n.label} | {n.value}{f' ± {n.error}' if n.error else ''} | {n.unit} |" for n in headline(test)]
    table = ["| test split | | |", "| --- | --- | --- |", *rows] if rows else []
    what = "Curves, pictures, the gate's reasons and where it comes from: artifact `reports/index.html` of the run."
    return "\n".join([*table, "", f"Pixels: {summary.protocol()}. {what}"]).strip()


def where() -> str:
    """Where the page is, as Markdown; a link where MLflow is a server."""
    found = facts()
    if not found:
        return ""
    text = f"`{PAGE}`"
    if run := found.get("run_id"):
        text += f"; in MLflow: run `{run}`, artifact `{PAGE}`"
        if (uri := redact(tracking_uri(current_workspace()))).startswith(("http://", "https://")):
            place = f"experiments/{found['experiment_id']}/runs/{run}/artifacts/{PAGE}"
            text += f" ([open]({uri.rstrip('/')}/#/{place}))"
    return text


def facts(path: Path = PAGE) -> dict[str, str]:
    """What the page was made from: inputs (a digest), digest, name, version, run_id, experiment_id; else empty."""
    try:
        head = path.read_text(encoding="utf-8")[:20_000]
    except OSError:
        return {}
    match = FACTS.search(head)
    found = json.loads(html.unescape(match[1])) if match else {}
    return {str(key): str(value) for key, value in found.items()}


def is_stale() -> bool:
    """Whether there is something to show that the page, if any, does not."""
    return bool(summary.registration()) and facts().get("inputs") != _inputs()


def _inputs() -> str:
    """A digest of all that the page shows but the lineage."""
    files = [
        summary.METRICS,
        summary.REGISTRATION,
        curves.HISTORY,
        curves.KL,
        CLAIMS,
        MODEL / "config.json",
        *summary.pictures(),
    ]
    return value_digest({str(path): file_digest(path) for path in files if path.is_file()})


def _facts(params: Params, lineage: Lineage | None) -> dict[str, str]:
    where = {"name": params.register_.name, "digest": model_digest(MODEL), "inputs": _inputs()}
    if lineage is None:
        return where
    return where | {"version": lineage.version, "run_id": lineage.run_id, "experiment_id": lineage.experiment_id}
