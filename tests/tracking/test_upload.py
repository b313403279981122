"""Outboxes against a real MLflow store in sqlite."""

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from interrupted_client import InterruptedClient
from uploads import DIGEST, later_stage, train
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.outbox import Outbox
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import RunTracker
from vaeline.tracking.upload import Upload
from vaeline.tracking.uploader import sync_all, upload_now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def report_later(**values: float) -> RunTracker:
    """A later stage that reports some numbers."""
    with later_stage() as run:
        run.metrics(values)
    return run


def upload(run: RunTracker, client: "MlflowClient") -> None:
    upload_now(run.outbox, client, current_workspace())


def sync() -> str:
    return sync_all(current_workspace())


@pytest.fixture
def client(store: Path) -> "MlflowClient":
    return connect(current_workspace())


@pytest.fixture
def run(store: Path) -> RunTracker:
    """A finished training of three steps, nothing of it sent."""
    run = train()
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


def assert_arrived_once(client: "MlflowClient", tracker: RunTracker) -> None:
    (run,) = runs(client)
    events = [event for _, event in tracker.outbox.read()]
    sent = [(e["step"], e["values"]["train/elbo"], e["time"]) for e in events if e["kind"] == "metrics"]
    assert history(client, run, "train/elbo") == sent
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2, "a PNG, and a small WebP"
    assert run.data.params == {"train.beta": "1.0"}
    assert run.data.tags["vaeline.model_digest"] == DIGEST
    assert run.info.run_name == "run"
    times = tuple(event["time"] for event in events if event["kind"] in ("start", "end"))
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", *times)


def send_through_failing(run: RunTracker, client: "MlflowClient", at: int, *, lost: bool) -> None:
    """Send over a connection that fails at a call: before it reaches the store, or so that only its answer is lost."""
    Upload(run.outbox, cast("MlflowClient", InterruptedClient(client, at, fail, lost=lost)), current_workspace()).send()


def fail() -> None:
    raise ConnectionError


def test_everything_arrives_once_with_its_own_time_and_later_stages_add_to_it(run: RunTracker, client: "MlflowClient"):
    """Mistake 16: events keep the time at which they were reported."""
    assert sync() == "7 events of 1 runs sent"
    assert_arrived_once(client, run)
    assert sync() == "0 events of 0 runs sent"
    report_later(**{"test/nll": 99.0})
    sync()
    (found,) = runs(client)
    assert found.data.metrics == {"train/elbo": -3.0, "train/kl": 1.0, "test/nll": 99.0}
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize("lost", [False, True])
def test_whichever_call_fails_everything_arrives_once(run: RunTracker, client: "MlflowClient", lost: bool):
    """Mistake 16: progress is recorded after what it marks was sent, so nothing is lost, and nothing is sent twice."""
    run.outbox.append("metrics", step=4, values={"train/elbo": -4.0})
    for at in itertools.count(1):
        try:
            send_through_failing(run, client, at, lost=lost)
            break
        except ConnectionError:
            continue
    assert at > 6
    assert run.outbox.is_sent()
    assert_arrived_once(client, run)


def test_metrics_at_the_end_of_a_batch_are_sent_again_where_their_call_fails(run: RunTracker, client: "MlflowClient"):
    """Mistake 16: progress is recorded after the batch's last metrics were sent."""
    upload(run, client)
    run.outbox.append("metrics", step=4, values={"train/elbo": -4.0})
    with pytest.raises(ConnectionError):
        send_through_failing(run, client, 2, lost=False)  # get_run, then log_batch
    assert not run.outbox.is_sent()
    upload(run, client)
    assert_arrived_once(client, run)


def test_a_resumed_training_goes_on_in_its_run_which_its_uploader_alone_sends(store: Path, client: "MlflowClient"):
    for values, status in (([1.0], "KILLED"), ([1.0, 2.0], "FINISHED")):
        training = train()
        for step, value in enumerate(values):
            training.metrics({"train/elbo": value}, step)
        assert sync() == "0 events of 0 runs sent; 1 still being written or sent by another process"
        upload(training, client)
        assert runs(client)[0].info.status == "RUNNING"
        training.close(status)
        assert sync() == "1 events of 1 runs sent"
        assert runs(client)[0].info.status == status
    (run,) = runs(client)
    assert [(step, value) for step, value, _ in history(client, run, "train/elbo")] == [(0, 1.0), (1, 2.0)]


def test_a_run_that_the_outbox_no_longer_has_is_found_in_the_store_by_its_model(
    run: RunTracker, client: "MlflowClient", outputs: Callable[..., Path], store: Path
):
    sync()
    assert run.outbox.prune(time.time() + 60)
    outputs(folder=store.parents[1])
    report_later(**{"test/nll": 99.0, "test/elbo": -11.0})  # the outputs have this ELBO, the store has none
    sync()
    (found,) = runs(client)
    assert found.data.metrics == {"train/elbo": -3.0, "train/kl": 1.0, "test/nll": 99.0, "test/elbo": -11.0}
    assert found.data.tags["vaeline.outbox"].startswith("key-1-")


def test_an_empty_store_gets_a_run_with_history_and_metrics(
    client: "MlflowClient", outputs: Callable[..., Path], store: Path
):
    outputs(folder=store.parents[1])
    upload(report_later(test_elbo=-11.0), client)
    (made,) = runs(client)
    assert [(step, value) for step, value, _ in history(client, made, "train/elbo")] == [(10, -5.0), (20, -4.0)]
    assert made.data.metrics["test_elbo"] == -11.0
    assert (made.data.tags["vaeline.model_digest"], made.info.status) == (DIGEST, "FINISHED")


@pytest.mark.parametrize("change", ["deleted run", "deleted experiment", "another store"])
def test_what_was_deleted_or_goes_to_another_store_comes_with_the_runs_whole_history(
    run: RunTracker,
    client: "MlflowClient",
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: str,
):
    sync()
    (sent,) = runs(client)
    match change:
        case "deleted run":
            client.delete_run(sent.info.run_id)
        case "deleted experiment":
            client.delete_experiment(sent.info.experiment_id)
        case _:
            other = shutil.copy(empty_store, tmp_path / "other.db")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
            client = connect(current_workspace())
    upload(report_later(**{"test/nll": 99.0}), client)
    anew = max(runs(client), key=lambda found: len(found.data.metrics))
    assert len(history(client, anew, "train/elbo")) == 3
    assert anew.data.metrics["test/nll"] == 99.0


def test_what_mlflow_refuses_costs_only_itself(store: Path, client: "MlflowClient"):
    Outbox(current_workspace()).create("without a start").append("metrics", step=1, values={"a": 1.0})
    with train() as run:
        run.metrics({"good": 1.0, "bad,name": 2.0, "x" * 300: 3.0}, 1)
        run.image("bad,key", np.zeros((2, 2), np.uint8), 1)
        run.tags({"x" * 300: "too long"})
        run.metrics({"good": 2.0}, 2)
    assert sync().endswith("of 2 runs sent")
    assert all(run.is_sent() for run in Outbox(current_workspace()).runs())
    (sent,) = runs(client)
    assert sent.data.metrics == {"good": 2.0}
    assert len(history(client, sent, "good")) == 2
    assert sent.info.status == "FINISHED"


def test_thousands_of_points_arrive_beside_the_data_set(store: Path, client: "MlflowClient"):
    manifest = {"shape": [1, 28, 28], "splits": {"train": {"count": 50_000}, "test": {"count": 10_000}}}
    described = {"name": "fashion-mnist", "digest": "d" * 64, "manifest": manifest}
    with train(start=RunStart("experiment", "run", dataset=described)) as run:
        for step in range(1200):
            run.metrics({"a": float(step)}, step)
    upload(run, client)
    (sent,) = runs(client)
    assert [step for step, _, _ in history(client, sent, "a")] == list(range(1200))
    dataset = sent.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("fashion-mnist", "d" * 36)
    assert json.loads(dataset.profile) == {"train": 50_000, "test": 10_000, "shape": [1, 28, 28]}
