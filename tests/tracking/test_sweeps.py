from pathlib import Path

from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import open_training_run
from vaeline.tracking.sweeps import close_parent, open_parent
from vaeline.tracking.uploader import sync_all


def test_the_parent_is_made_once_and_holds_the_outcome_and_runs_without_a_parent_become_its_children(store: Path):
    here, params = current_workspace(), {"train.beta": "1, 4"}
    parent = open_parent(here, "experiment", "first", params)
    assert open_parent(here, "experiment", "first", params) == parent, "found again"
    assert open_parent(here, "experiment", "second", {}) != parent
    reports = here.reports / "sweeps" / "first"
    reports.mkdir(parents=True)
    (reports / "ranking.csv").write_text("rank\n1\n")
    for key, tags in (("orphan", {}), ("elsewhere", {"mlflow.parentRunId": "another"}), ("unrelated", {})):
        with open_training_run(here, key, RunStart("experiment", key, {}, tags)) as training:
            training.finish_training(f"digest of {key}")
    sync_all(here)
    outcome = {"metrics": {"best/test/elbo": -1.5}, "tags": {"vaeline.sweep_best": "first-01"}, "folder": reports}
    for _ in range(2):
        close_parent(here, parent, "FINISHED", **outcome, digests=["digest of orphan", "digest of elsewhere", ""])
    client = connect(here)
    run = client.get_run(parent)
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "first", params)
    assert run.data.metrics == outcome["metrics"]
    assert [file.path for file in client.list_artifacts(parent)] == ["ranking.csv"]
    runs = client.search_runs([run.info.experiment_id])
    parents = {r.info.run_name: r.data.tags.get("mlflow.parentRunId") for r in runs}
    assert parents == {"orphan": parent, "elsewhere": "another", "unrelated": None, "first": None, "second": None}
