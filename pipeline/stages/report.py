"""Stage report: all other stages' outputs -> `reports/index.html`, which the model's MLflow run keeps a copy of."""

from pipeline.report.page import render
from vaeline.config import read_params
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import model_digest
from vaeline.io.workspace import current_workspace
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_model_run


def main() -> None:
    """Write the page and attach it to the run."""
    workspace = current_workspace()
    params, page = read_params(workspace.params), workspace.reports / "index.html"
    write_file(page, render(workspace, params).encode())
    with open_model_run(workspace, model_digest(workspace.model), run_start(workspace, params)) as run:
        run.artifact(page, "reports")
