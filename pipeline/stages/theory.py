"""Stage theory: the model and its data -> `reports/theory/` (the page and its pictures), `reports/theory.json`."""

import csv
import io
from pathlib import Path

from pipeline.stages.inputs import load_trained
from vaeline.config import read_params
from vaeline.data.prepared import load_labels, load_split
from vaeline.io.atomic_write import write_file, write_folder
from vaeline.io.workspace import PARAMS, PREPARED, REPORTS, current_workspace
from vaeline.theory.context import Images, Rows, Subject
from vaeline.theory.report import show
from vaeline.tracking.runs import open_model_run, run_start
from vaeline.training.device import pick_device, reproducible

HISTORY, PAGE, NUMBERS = REPORTS / "history.csv", REPORTS / "theory", REPORTS / "theory.json"


def main() -> None:
    """Show every claim of the theory on the trained model."""
    params, device = read_params(PARAMS), pick_device()
    trained = load_trained(device)
    subject = Subject(
        model=trained.vae,
        section=trained.config.model,
        objective=trained.config.objective,
        binarise=trained.config.data.binarise,
        train=read("train"),
        validation=read("validation"),
        test=read("test"),
        history=history(HISTORY),
        options=params.theory,
        device=device,
    )
    with reproducible(device):
        report = show(subject)
    write_folder(PAGE, report.files())
    write_file(NUMBERS, report.numbers())
    with open_model_run(current_workspace(), trained.digest, run_start(current_workspace(), params)) as run:
        for name in report.files():
            run.artifact(PAGE / name, "reports/theory")
        run.artifact(NUMBERS, "reports")


def read(name: str) -> Images:
    """A split, with its labels if it has any."""
    return Images(load_split(PREPARED, name), load_labels(PREPARED, name))


def history(path: Path) -> Rows:
    """The rows of reports/history.csv; None where a field is empty."""
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return [{name: float(value) if value else None for name, value in row.items()} for row in rows]
