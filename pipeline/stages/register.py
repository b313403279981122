"""Stage `register`: put the model through the gate and into the registry, once a model."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import page
from pipeline.stages.entry import run_stage
from vaeline.config import read_params
from vaeline.durable import write_whole
from vaeline.errors import UserError
from vaeline.models import LoadedModel, load_model
from vaeline.tracking.gate import Evidence
from vaeline.tracking.lineage import of_digest
from vaeline.tracking.notes import annotate
from vaeline.tracking.registry import Candidate, register
from vaeline.tracking.runs import flatten_metrics, open_model_run, run_start
from vaeline.tracking.store import connect, told_in_one_line
from vaeline.tracking.sync import ship_now
from vaeline.workspace import MODEL, PARAMS, PREPARED, REPORTS

EXAMPLES = 2  # images kept beside the model to show what goes in


def main() -> None:
    """Read the model and its metrics, register, and write reports/registration.json."""
    params = read_params(PARAMS)
    report = read_report(REPORTS / "metrics.json")
    example = read_example(PREPARED / "test.npy")
    client = connect()
    loaded = load_model(MODEL)
    evidence = gather_evidence(loaded, report)
    with told_in_one_line(), open_model_run(loaded.digest, run_start(params), ship=False) as tracker:
        run_id = ship_now(tracker.spool, client)
        candidate = Candidate(params.register_.name, MODEL, loaded, example, evidence, run_id)
        registration = register(client, candidate, params.register_.minimum_active_units)
        tracker.tags({"vaeline.decision": registration.decision})
        write_whole(REPORTS / "registration.json", (json.dumps(asdict(registration), indent=2) + "\n").encode())
        lineage = of_digest(client, registration.name, registration.digest)
        tracker.artifact(page.write(params, lineage), "reports")
        ship_now(tracker.spool, client)
        if lineage is not None:
            annotate(client, lineage, page.note())


def gather_evidence(loaded: LoadedModel, report: dict[str, Any]) -> Evidence:
    """What the gate decides on; raises UserError where the report lacks it."""
    has_elbo = loaded.config.objective != "autoencoder"
    units = _number(report, "test", "active_units") if has_elbo else 0
    return Evidence(
        digest=loaded.digest,
        data_digest=loaded.config.data.digest,
        likelihood=loaded.config.model.likelihood.kind,
        objective=loaded.config.objective,
        validation_elbo=_number(report, "validation", "elbo") if has_elbo else math.nan,
        active_units=int(units) if math.isfinite(units) else 0,
        metrics=flatten_metrics(report),
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read reports/metrics.json; raises UserError where it is not the evaluation's."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage evaluate") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON; run the stage evaluate again") from None
    if not isinstance(report, dict):
        raise UserError(f"{path}: holds no metrics; run the stage evaluate again")
    return report


def read_example(path: Path) -> np.ndarray:
    """The first test images, uint8 [N, C, H, W]."""
    try:
        return np.array(np.load(path, mmap_mode="r")[:EXAMPLES])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _number(report: dict[str, Any], split: str, name: str) -> float:
    """One number of the report. Raises UserError where it is missing."""
    section = report.get(split)
    value = section.get(name) if isinstance(section, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{REPORTS / 'metrics.json'}: {split}.{name}: found {value!r}, allowed: a number")
    return float(value)


if __name__ == "__main__":
    run_stage(main)
