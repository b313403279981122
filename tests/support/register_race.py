"""Processes that register models at once on one sqlite store: python register_race.py FOLDER...

Run in a repository whose reports and data belong to each of the models. Forks a process a folder before anything opens
the store; all start together. Exit code: how many failed.
"""

import os
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stages import register as stage
from registry_fixture import NAME, START
from vaeline.config import read_params
from vaeline.data.prepared import load_split
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import current_workspace
from vaeline.registry import registration, smoke
from vaeline.registry.registration import NewModel, register
from vaeline.serving import mlflow_package
from vaeline.serving.model_files import load_model
from vaeline.tracking.connection import connect
from vaeline.tracking.runs import open_model_run
from vaeline.tracking.uploader import upload_now

PATIENCE_S = 500  # on a machine that is busy with other things
assert mlflow_package  # imported before the fork, as MLflow's stores are


def register_one(folder: Path, barrier: Any) -> None:
    """Register the model in a folder once all processes are ready."""
    workspace, loaded = current_workspace(), load_model(folder)
    client, test = connect(workspace), load_split(workspace.prepared, "test")
    evaluator = stage.gate_evaluator(workspace, read_params(workspace.params), test)
    evaluator = replace(evaluator, thresholds=evaluator.thresholds.model_copy(update={"minimum_active_units": 0}))
    with open_model_run(workspace, loaded.digest, START, upload=False) as tracker:
        run_id = upload_now(tracker.outbox, client, workspace, PATIENCE_S)
    evidence = stage.gather_evidence(loaded, read_metrics(workspace.reports / "metrics.json"))
    barrier.wait(PATIENCE_S)
    register(client, workspace, NewModel(NAME, folder, loaded, np.array(test[:2]), evidence, run_id, ""), evaluator)


def main() -> int:
    """Number of processes that failed."""
    registration.smoke_test = smoke.predict  # in a process each, it would take seconds
    context = get_context("fork")
    barrier = context.Barrier(len(sys.argv) - 1)
    children = [context.Process(target=register_one, args=(Path(folder), barrier)) for folder in sys.argv[1:]]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return sum(child.exitcode != 0 for child in children)


if __name__ == "__main__":
    os.environ["VAELINE_DEVICE"] = "cpu"
    sys.exit(main())
