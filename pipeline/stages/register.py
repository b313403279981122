"""Stage `register`: put the model through the gate and into the registry, once a model."""

import copy
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.report import summary
from vaeline.config import AutoencoderKl, read_params
from vaeline.data.prepared import load_split, manifest_digest
from vaeline.errors import UserError
from vaeline.evaluation.drift import REFERENCE_SEED, spread_evenly
from vaeline.evaluation.first_stage import mean_similarity
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.evaluation.split_metrics import Scores, score
from vaeline.io.atomic_write import write_file
from vaeline.io.npy import Pixels
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.registry.champion import GateEvaluator
from vaeline.registry.gate import Evidence
from vaeline.registry.registration import NewModel, annotate, register, training_code
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import LoadedModel, load_trained
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.provenance import flatten_metrics, run_start
from vaeline.tracking.runs import open_model_run
from vaeline.tracking.uploader import upload_now
from vaeline.training.device import pick_device, reproducible

EXAMPLES = 2  # images stored with the model as an input example
# nats a pixel value of a fixed model: N(1/2, 1), Laplace(1/2, 1/2) at their farthest, uniform on [0, 1], a coin, 256
# levels alike
BLIND = {
    "gaussian": -0.5 * math.log(2 * math.pi) - 0.125,
    "laplace": -1.0,
    "continuous-bernoulli": 0.0,
    "bernoulli": -math.log(2),
    "discretised-logistic": -math.log(256),
}


def main() -> None:
    """Read the model and its metrics, register, and write reports/registration.json."""
    workspace, device = current_workspace(), pick_device()
    params, report = read_params(workspace.params), read_metrics(workspace.reports / "metrics.json")
    loaded, test = load_trained(workspace), load_split(workspace.prepared, "test")
    evidence, client, reference = gather_evidence(loaded, report), connect(workspace), None
    start = run_start(workspace, params)
    with one_line_errors(), open_model_run(workspace, loaded.digest, start, upload=False) as tracker:
        if not loaded.vae.deterministic:  # ELBOs stored with the model: see `vaeline.evaluation.drift`
            here = TrainedModel(replace(loaded, vae=copy.deepcopy(loaded.vae).to(device)))
            elbo = here.score(test[spread_evenly(len(test))], REFERENCE_SEED)
            reference = elbo if len(elbo) > 1 and np.isfinite(elbo).all() else None  # the gate says why not
        model = NewModel(
            name=params.register_.name,
            folder=workspace.model,
            loaded=loaded,
            example=np.array(test[:EXAMPLES]),
            evidence=evidence,
            run_id=upload_now(tracker.outbox, client, workspace),
            note=summary.sentence(report, params.data.title),
            reference=reference,
            code=training_code(tracker.outbox),
        )
        registration = register(client, workspace, model, gate_evaluator(workspace, test))
        tracker.tags({"vaeline.decision": registration["decision"]})
        content = json.dumps(registration, indent=2) + "\n"
        write_file(workspace.reports / "registration.json", content.encode())
        annotate(client, upload_now(tracker.outbox, client, workspace), summary.note(report))


def gather_evidence(loaded: LoadedModel, report: dict[str, Any]) -> Evidence:
    """Evidence for the gate. Raises UserError where the report lacks it."""
    metrics, elbo, units = flatten_metrics(report), math.nan, 0
    if loaded.config.objective != "autoencoder":
        for name in ("validation/elbo", "test/active_units"):
            if name not in metrics:
                raise UserError(f"reports/metrics.json: {name}: is no number; run the stage evaluate again")
        elbo, units = metrics["validation/elbo"], int(metrics["test/active_units"])
    kind = loaded.config.model.likelihood.kind
    return Evidence(
        digest=loaded.digest,
        data_digest=loaded.config.data.digest,
        likelihood=kind,
        objective=loaded.config.objective,
        validation_elbo=elbo,
        active_units=units,
        metrics=metrics,
        blind_elbo=BLIND.get(kind, -math.inf) * math.prod(loaded.config.shape),
    )


def gate_evaluator(workspace: Workspace, pixels: Pixels | None = None) -> GateEvaluator:
    """Gate of the workspace: thresholds of its params, models scored on its test split, on this machine's device.

    `pixels` are the split's where they are open already; to open it again would be to read it all.
    """
    params, device = read_params(workspace.params), pick_device()
    test, scoring = load_split(workspace.prepared, "test") if pixels is None else pixels, params.evaluate

    def measure(loaded: LoadedModel) -> Scores:
        if loaded.config.shape != test.shape[1:]:
            own, wanted = (" x ".join(map(str, shape)) for shape in (loaded.config.shape, test.shape[1:]))
            raise UserError(f"model {loaded.digest[:12]}: is of {own} images, the test split's are {wanted}")
        model = copy.deepcopy(loaded.vae).to(device)
        with reproducible(device):
            found = score(model, test, seed=scoring.seed, active_units_threshold=scoring.active_units_threshold)
            if isinstance(loaded.config.model.network, AutoencoderKl):
                found = replace(found, ssim=mean_similarity(model, test).value)
            return found

    return GateEvaluator(params.register_, manifest_digest(workspace.prepared), measure)
