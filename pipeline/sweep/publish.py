"""What a sweep leaves: `reports/sweeps/<name>/`, and the parent run in MLflow."""

import logging
from pathlib import Path

from pipeline.sweep.pictures import pictures
from pipeline.sweep.ranking import best, rows, to_csv, to_markdown
from pipeline.sweep.space import Axis, Choices
from pipeline.sweep.state import Sweep, show
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import REPORTS, current_workspace
from vaeline.tracking.sweeps import close_parent, open_parent

log = logging.getLogger(__name__)


def write_reports(sweep: Sweep) -> Path:
    """The table as CSV and Markdown and the pictures; the folder they are in."""
    folder = REPORTS / "sweeps" / sweep.name
    for name, content in _files(sweep).items():
        write_file(folder / name, content)
    return folder


def _files(sweep: Sweep) -> dict[str, bytes]:
    texts = {"ranking.csv": to_csv(sweep), "ranking.md": to_markdown(*rows(sweep))}
    return {name: text.encode() for name, text in texts.items()} | pictures(sweep)


def begin_in_mlflow(sweep: Sweep) -> str:
    """Make or find the parent run, so that the trials' runs are its children; returns why not, or nothing."""
    values = {axis.key: _shown(axis) for axis in sweep.axes}
    request = sweep.request
    asked = {"sweep.search": request.search, "sweep.metric": request.metric, "sweep.trials": str(sweep.total)}
    try:
        sweep.parent_run_id = open_parent(
            current_workspace(), sweep.baseline.params["register"]["name"], sweep.name, values | asked
        )
    except UserError as error:
        return str(error)
    sweep.save()
    return ""


def end_in_mlflow(sweep: Sweep) -> str:
    """Put the ranking and the pictures into the parent run; returns why not, or nothing."""
    if not sweep.parent_run_id and (away := begin_in_mlflow(sweep)):
        return away
    chosen = best(sweep)
    tags = {"vaeline.sweep_best": chosen.name, "mlflow.note.content": to_markdown(*rows(sweep))} if chosen else {}
    metrics = {f"best/{sweep.request.metric.replace('.', '/')}": sweep.score(chosen) or 0.0} if chosen else {}
    failed = any(trial.status == "failed" for trial in sweep.trials)
    try:
        close_parent(
            current_workspace(),
            sweep.parent_run_id,
            "FAILED" if failed else "FINISHED",
            metrics=metrics,
            tags=tags,
            files=_files(sweep),
            digests=[trial.digest for trial in sweep.trials],
        )
    except UserError as error:
        return str(error)
    return ""


def _shown(axis: Axis) -> str:
    if isinstance(axis, Choices):
        return ", ".join(map(show, axis.values))
    return f"{'log:' if axis.log else ''}{axis.low:g}..{axis.high:g}"
