"""Spools against a real MLflow store in sqlite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.outbox import Progress, RunOutbox, discard
from vaeline.tracking.runs import RunStart, RunTracker, open_model_run, open_training_run
from vaeline.tracking.sync import sync_all, upload_now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
DIGEST = "m" * 64


@pytest.fixture
def client(store: Path) -> "MlflowClient":
    return connect(current_workspace())


@pytest.fixture
def run(store: Path, start: RunStart) -> RunTracker:
    """A finished training of three steps, nothing of it sent."""
    run = open_training_run(current_workspace(), "key", start)
    for step in (1, 2, 3):
        run.metrics({"train/elbo": -float(step), "train/kl": 1.0}, step)
    run.image("samples", np.full((8, 8), 7, np.uint8), 3)
    run.finish_training(DIGEST)
    run.close()
    return run


def runs(client: "MlflowClient") -> "list[Run]":
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def history(client: "MlflowClient", run: "Run", name: str) -> list[tuple[int, float, int]]:
    points = client.get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def pictures(client: "MlflowClient", run: "Run") -> list[str]:
    return [f.path for f in client.list_artifacts(run.info.run_id, "images") if f.path.endswith(".png")]


def assert_arrived_once(client: "MlflowClient", spool: RunOutbox) -> "Run":
    (run,) = runs(client)
    events = [event for event, _ in spool.read()]
    sent = [(e["step"], e["values"]["train/elbo"], e["time"]) for e in events if e["kind"] == "metrics"]
    assert history(client, run, "train/elbo") == sent
    assert len(pictures(client, run)) == 1
    assert run.data.params == {"train.beta": "1.0"}
    assert run.data.tags["vaeline.model_digest"] == DIGEST
    assert run.info.run_name == "run"
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        events[0]["time"],
        events[-1]["time"],
    )
    return run


def test_everything_arrives_once_with_its_own_time(run: RunTracker, client: "MlflowClient"):
    assert str(sync_all(current_workspace())) == "7 events of 1 runs sent"
    assert_arrived_once(client, run.outbox)
    assert sync_all(current_workspace()).events == 0


def test_what_is_sent_again_after_a_crash_changes_nothing(run: RunTracker, client: "MlflowClient"):
    upload_now(run.outbox, client, current_workspace())
    whole = Progress.of(run.outbox, client.tracking_uri)
    offsets = [0, *(offset for _, offset in run.outbox.read())]
    for offset in offsets:  # as if the process had died before writing down how far it was
        Progress(whole.path, offset, whole.run_id if offset else None, made=True).write()
        upload_now(run.outbox, client, current_workspace())
    whole.path.unlink()
    upload_now(run.outbox, client, current_workspace())
    assert_arrived_once(client, run.outbox)


def test_what_a_power_failure_cut_off_is_told_and_sent_again(run: RunTracker, client: "MlflowClient"):
    upload_now(run.outbox, client, current_workspace())
    (before,) = runs(client)
    points = history(client, before, "train/elbo")
    whole = run.outbox.events.read_bytes()
    run.outbox.events.write_bytes(whole[: len(whole) // 2])
    upload_now(run.outbox, client, current_workspace())
    run.outbox.append("metrics", step=4, values={"train/elbo": -4.0})
    upload_now(run.outbox, client, current_workspace())
    assert [point[:2] for point in history(client, before, "train/elbo")] == [p[:2] for p in points] + [(4, -4.0)]


def test_a_resumed_training_goes_on_in_its_run(store: Path, start: RunStart, client: "MlflowClient"):
    first = open_training_run(current_workspace(), "key", start)
    first.metrics({"train/elbo": 1.0}, 1)
    first.close("KILLED")
    sync_all(current_workspace())
    assert runs(client)[0].info.status == "KILLED"
    second = open_training_run(current_workspace(), "key", start)
    second.metrics({"train/elbo": 1.0}, 1)
    second.metrics({"train/elbo": 2.0}, 2)
    upload_now(second.outbox, client, current_workspace())
    assert runs(client)[0].info.status == "RUNNING"
    second.close()
    sync_all(current_workspace())
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert [(step, value) for step, value, _ in history(client, run, "train/elbo")] == [(1, 1.0), (2, 2.0)]


def test_later_stages_add_to_the_run_of_the_model(run: RunTracker, start: RunStart, client: "MlflowClient"):
    with open_model_run(current_workspace(), DIGEST, start) as later:
        later.metrics({"test_nll": 99.0})
    sync_all(current_workspace())
    (found,) = runs(client)
    assert found.data.metrics == {"train/elbo": -3.0, "train/kl": 1.0, "test_nll": 99.0}
    assert found.info.status == "FINISHED"


def test_a_run_whose_spool_is_gone_is_found_in_the_store_by_its_model(
    run: RunTracker, start: RunStart, client: "MlflowClient", outputs: Callable[..., Path], store: Path
):
    sync_all(current_workspace())
    discard(run.outbox)
    outputs(folder=store.parents[1])
    with open_model_run(current_workspace(), DIGEST, start) as later:
        later.metrics({"test_nll": 99.0})
    sync_all(current_workspace())
    (found,) = runs(client)
    assert found.data.metrics == {"train/elbo": -3.0, "train/kl": 1.0, "test_nll": 99.0}
    assert found.data.tags["vaeline.spool"].startswith("key-1-")


def test_in_an_empty_store_a_run_is_made_with_history_and_metrics(
    client: "MlflowClient", start: RunStart, outputs: Callable[..., Path], store: Path
):
    outputs(folder=store.parents[1])
    with open_model_run(current_workspace(), DIGEST, start) as later:
        pass
    upload_now(later.outbox, client, current_workspace())
    (made,) = runs(client)
    assert [(step, value) for step, value, _ in history(client, made, "train/elbo")] == [(10, -5.0), (20, -4.0)]
    assert made.data.metrics["test_elbo"] == -11.0
    assert made.data.tags["vaeline.model_digest"] == DIGEST
    assert made.info.status == "FINISHED"


def test_a_deleted_run_starts_anew_with_its_whole_history(run: RunTracker, client: "MlflowClient"):
    sync_all(current_workspace())
    client.delete_run(runs(client)[0].info.run_id)
    later = open_model_run(current_workspace(), DIGEST, RunStart("experiment", "run"))
    later.metrics({"test_nll": 99.0})
    later.close()
    sync_all(current_workspace())
    (anew,) = runs(client)
    assert len(history(client, anew, "train/elbo")) == 3


def test_a_deleted_experiment_comes_back(run: RunTracker, start: RunStart, client: "MlflowClient"):
    sync_all(current_workspace())
    client.delete_experiment(runs(client)[0].info.experiment_id)
    again = open_training_run(current_workspace(), "other", start)
    again.metrics({"train/elbo": 5.0}, 1)
    again.close()
    sync_all(current_workspace())
    assert {r.data.metrics["train/elbo"] for r in runs(client)} >= {5.0}


def test_another_store_gets_the_whole_run(
    run: RunTracker, start: RunStart, empty_store: Path, store: Path, monkeypatch: pytest.MonkeyPatch
):
    sync_all(current_workspace())
    other = store.parent / "other.db"
    other.write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    with open_model_run(current_workspace(), DIGEST, start) as later:
        later.metrics({"test_nll": 99.0})
    client = connect(current_workspace())
    upload_now(later.outbox, client, current_workspace())
    (moved,) = runs(client)
    assert len(history(client, moved, "train/elbo")) == 3


def test_what_mlflow_refuses_costs_only_itself(store: Path, start: RunStart, client: "MlflowClient"):
    with open_training_run(current_workspace(), "key", start) as run:
        run.metrics({"good": 1.0, "bad,name": 2.0, "x" * 300: 3.0}, 1)
        run.image("bad,key", np.zeros((2, 2), np.uint8), 1)
        run.tags({"x" * 300: "too long"})
        run.metrics({"good": 2.0}, 2)
    upload_now(run.outbox, client, current_workspace())
    (sent,) = runs(client)
    assert sent.data.metrics == {"good": 2.0}
    assert len(history(client, sent, "good")) == 2
    assert sent.info.status == "FINISHED"


def test_thousands_of_points_arrive(store: Path, start: RunStart, client: "MlflowClient"):
    with open_training_run(current_workspace(), "key", start) as run:
        for step in range(1200):
            run.metrics({"a": float(step), "b": 1.0}, step)
    upload_now(run.outbox, client, current_workspace())
    (sent,) = runs(client)
    assert [step for step, _, _ in history(client, sent, "a")] == list(range(1200))
    assert len(history(client, sent, "b")) == 1200


def test_the_data_set_stands_beside_the_run(store: Path, client: "MlflowClient"):
    manifest = {"shape": [1, 28, 28], "splits": {"train": {"count": 50_000}, "test": {"count": 10_000}}}
    described = {"name": "fashion-mnist", "digest": "d" * 64, "manifest": manifest}
    with open_training_run(current_workspace(), "key", RunStart("experiment", "run", dataset=described)) as run:
        pass
    upload_now(run.outbox, client, current_workspace())
    (sent,) = runs(client)
    dataset = sent.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("fashion-mnist", "d" * 36)
    assert json.loads(dataset.profile) == {"train": 50_000, "test": 10_000}
    features = json.loads(json.loads(dataset.schema)["mlflow_tensorspec"]["features"])
    assert features == [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, 1, 28, 28]}}]


def test_a_log_without_its_beginning_is_given_up_and_blocks_nothing(store: Path, client: "MlflowClient"):
    spool = RunOutbox(store.parent / "spool" / "lost-1")
    spool.append("metrics", step=1, values={"a": 1.0})
    spool.append("end", status="FINISHED")
    sync_all(current_workspace())
    assert spool.is_sent()
    assert runs(client) == []


def test_a_run_that_another_process_writes_is_left_to_its_shipper(store: Path, start: RunStart):
    run = open_training_run(current_workspace(), "key", start)
    assert (
        str(sync_all(current_workspace()))
        == "0 events of 0 runs sent; 1 still being written or sent by another process"
    )
    run.close()
    assert sync_all(current_workspace()).runs == 1
