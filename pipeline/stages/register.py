"""Stage `register`: put the model through the gate and into the registry, once a model."""

import copy
import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from pipeline.report import page
from pipeline.stages.inputs import load_trained
from vaeline.config import Params, read_params
from vaeline.data.prepared import load_split, manifest_digest
from vaeline.errors import UserError
from vaeline.evaluation.comparison import Scores, score
from vaeline.evaluation.drift import REFERENCE_SEED, spread_evenly
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.evaluation.split_metrics import Pixels
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import MODEL, PARAMS, PREPARED, REPORTS, current_workspace
from vaeline.registry.champion import Trial
from vaeline.registry.gate import Bar, Evidence
from vaeline.registry.lineage import of_digest
from vaeline.registry.notes import annotate
from vaeline.registry.versions import Candidate, register
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import LoadedModel
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.runs import flatten_metrics, open_model_run, run_start
from vaeline.tracking.sync import upload_now
from vaeline.training.device import pick_device, reproducible

EXAMPLES = 2  # images kept beside the model to show what goes in


def main() -> None:
    """Read the model and its metrics, register, and write reports/registration.json."""
    params = read_params(PARAMS)
    report = read_metrics(REPORTS / "metrics.json")
    loaded, test = load_trained(torch.device("cpu")), load_split(PREPARED, "test")
    client = connect(current_workspace())
    evidence = gather_evidence(loaded, report)
    with (
        one_line_errors(),
        open_model_run(
            current_workspace(), loaded.digest, run_start(current_workspace(), params), upload=False
        ) as tracker,
    ):
        run_id = upload_now(tracker.outbox, client, current_workspace())
        example, reference = np.array(test[:EXAMPLES]), reference_scores(loaded, test)
        candidate = Candidate(params.register_.name, MODEL, loaded, example, evidence, run_id, reference)
        registration = register(client, candidate, read_trial(params, test))
        tracker.tags({"vaeline.decision": registration.decision})
        write_file(REPORTS / "registration.json", (json.dumps(asdict(registration), indent=2) + "\n").encode())
        lineage = of_digest(client, registration.name, registration.digest)
        tracker.artifact(page.write(params, lineage), "reports")
        upload_now(tracker.outbox, client, current_workspace())
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


def read_trial(params: Params, test: Pixels) -> Trial:
    """The gate's questions and its scale: this test split, on this machine's device."""
    device, section, scoring = pick_device(), params.register_, params.evaluate

    def measure(loaded: LoadedModel) -> Scores:
        model = copy.deepcopy(loaded.vae).to(device)
        with reproducible(device):
            return score(model, test, seed=scoring.seed, active_units_threshold=scoring.active_units_threshold)

    bar = Bar(section.minimum_active_units, section.margin, section.confidence, section.psnr_tolerance)
    return Trial(bar, manifest_digest(PREPARED), measure)


def reference_scores(loaded: LoadedModel, test: np.ndarray) -> np.ndarray | None:
    """The ELBOs that travel with the model, of images from all over the test split: see `vaeline.evaluation.drift`.

    None where the model has no ELBO, or not a finite one for each of them.
    """
    if loaded.vae.deterministic:
        return None
    device = pick_device()
    model = TrainedModel(replace(loaded, vae=copy.deepcopy(loaded.vae).to(device)))
    elbo = model.score(test[spread_evenly(len(test))], REFERENCE_SEED)
    return elbo if len(elbo) > 1 and np.isfinite(elbo).all() else None


def _number(report: dict[str, Any], split: str, name: str) -> float:
    """One number of the report. Raises UserError where it is missing."""
    section = report.get(split)
    value = section.get(name) if isinstance(section, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{REPORTS / 'metrics.json'}: {split}.{name}: found {value!r}, allowed: a number")
    return float(value)
