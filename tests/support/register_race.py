"""Many processes that register at once, round after round: python register_race.py PROCESSES ROUNDS

Run in a repository whose folders models-0, models-1, ... hold models, the higher the better, and whose reports and
data belong to each of them. Prints, as JSON, what a watcher saw after each round and what a reader could load.
"""

import json
import random
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import numpy as np

from filled_registry import START, smoke_here
from pipeline.stages import register as stage
from vaeline.config import read_params
from vaeline.data.prepared import load_split
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import current_workspace
from vaeline.registry.operations import find_versions, read_history
from vaeline.registry.versions import Candidate, register
from vaeline.serving import mlflow_package
from vaeline.serving.model_files import load_model
from vaeline.tracking.connection import connect
from vaeline.tracking.runs import open_model_run
from vaeline.tracking.sync import upload_now

NAME = "race"
PATIENCE_S = 1500  # for one round, on a machine that is busy with other things
assert mlflow_package  # imported before the fork, as MLflow's stores are; none of them is used before it


def plan(processes: int, rounds: int, models: int) -> list[list[int]]:
    """Which model each process registers in each round: one new to all, by two of them; the others old or new."""
    chance = random.Random(7)
    new = chance.sample(range(models), models)
    rows = []
    for number in range(rounds):
        fresh = new[min(number, models - 1)]
        old = chance.choices(new[: number + 2], k=processes - 2)
        rows.append(chance.sample([fresh, fresh, *old], processes))
    return rows


def enter(rows: list[list[int]], mine: int, barrier: Any, failures: Any) -> None:
    """One process: waits for the others, registers its model, waits again, in each round."""
    try:
        client, test = connect(current_workspace()), load_split(Path("data/prepared"), "test")
        trial = stage.read_trial(read_params(Path("params.yaml")), test)
        trial = replace(trial, bar=replace(trial.bar, minimum_active_units=0), smoke_test=smoke_here)
        report = read_metrics(Path("reports/metrics.json"))
        for row in rows:
            folder = Path(f"models-{row[mine]}")
            loaded = load_model(folder)
            with open_model_run(current_workspace(), loaded.digest, START, upload=False) as tracker:
                run_id = upload_now(tracker.outbox, client, current_workspace(), PATIENCE_S)
            evidence = stage.gather_evidence(loaded, report)
            candidate = Candidate(NAME, folder, loaded, np.array(test[:2]), evidence, run_id)
            barrier.wait(PATIENCE_S)
            register(client, candidate, trial)
            barrier.wait(PATIENCE_S)
            barrier.wait(PATIENCE_S)
    except BaseException:
        failures.put(traceback.format_exc())
        barrier.abort()


def read(first: Any, stop: Any, counts: Any, failures: Any) -> None:
    """Load the champion and predict, again and again."""
    connect(current_workspace())
    loads, seen = 0, set()
    first.wait()
    while not stop.is_set():
        try:
            model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
            pixels = np.zeros((2, *model.metadata.metadata["methods"]["reconstruct"]["input"]["shape"][1:]), np.uint8)
            assert np.isfinite(model.predict(pixels)).all()
            seen.add(model.metadata.metadata["model_digest"])
            loads += 1
        except Exception:
            failures.put(traceback.format_exc())
            break
    counts.put((loads, len(seen)))


def look(client: Any) -> dict[str, Any]:
    """What there is between two rounds."""
    versions = find_versions(client, NAME)
    model = client.get_registered_model(NAME)
    told = read_history(model)
    digests = {str(version.version): version.tags["vaeline.model_digest"] for version in versions}
    return {
        "champion": digests[str(model.aliases["champion"])],
        "digests": list(digests.values()),
        "moves": [entry.digest for entry, _ in told if entry.moves],
        "befores": [digests.get(entry.before or "") for entry, _ in told if entry.moves],
        "judged": sorted({entry.digest for entry, _ in told}),
        "carried_out": all(done for _, done in told),
    }


def main(processes: int, rounds: int) -> None:
    """Fork all before anything opens the store; watch from here between the rounds."""
    context = get_context("fork")
    rows = plan(processes, rounds, len(list(Path().glob("models-*"))))
    barrier, failures, counts = context.Barrier(processes + 1), context.Queue(), context.Queue()
    stop, first = context.Event(), context.Event()
    children = [context.Process(target=enter, args=(rows, n, barrier, failures)) for n in range(processes)]
    children.append(context.Process(target=read, args=(first, stop, counts, failures)))
    for child in children:
        child.start()
    client, looks, started = connect(current_workspace()), [], time.monotonic()
    for row in rows:
        try:
            barrier.wait(PATIENCE_S)
            barrier.wait(PATIENCE_S)
            looks.append({"row": row, **look(client)})
            first.set()
            barrier.wait(PATIENCE_S)
        except BrokenBarrierError:
            break
    seconds = time.monotonic() - started
    stop.set()
    first.set()
    loads = counts.get(timeout=PATIENCE_S)
    for child in children:
        child.join()
    errors = []
    while not failures.empty():
        errors.append(failures.get())
    print(json.dumps({"looks": looks, "loads": loads, "seconds": seconds, "errors": errors}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
