"""The shipper as a process of its own, beside trainings that end well, are killed, or have no server."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uploads import answers, is_free, until
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.outbox import RunOutbox, all_outboxes
from vaeline.tracking.runs import RunStart, open_training_run
from vaeline.tracking.sync import KEEP_S, prune, sync_all

TRAINING = """
import time
from vaeline.io.workspace import current_workspace
from vaeline.tracking.runs import RunStart, open_training_run
run = open_training_run(current_workspace(), "key", RunStart("experiment", "run"))
run.metrics({"train/elbo": -1.0}, 1)
print("started", flush=True)
time.sleep(600)
"""
MANY = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect, experiment_id
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        experiment_id(connect(current_workspace()), "experiment", current_workspace())
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.fixture
def shipping(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository in which shippers run; waits for their end, so that none outlives the test."""
    monkeypatch.delenv("VAELINE_UPLOADER")
    yield store.parents[1]
    for spool in all_outboxes(current_workspace()):
        until(lambda spool=spool: is_free(spool))


def metrics(spool: RunOutbox) -> dict[str, float]:
    client = connect(current_workspace())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    return dict(runs[0].data.metrics) if runs else {}


def only_run_status() -> str:
    client = connect(current_workspace())
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return str(run.info.status)


def test_a_training_is_seen_while_it_runs_and_when_it_has_ended(shipping: Path, start: RunStart):
    with open_training_run(current_workspace(), "key", start) as run:
        run.metrics({"train/elbo": -1.0}, 1)
        until(lambda: "train/elbo" in metrics(run.outbox))
        assert only_run_status() == "RUNNING"
        until(lambda: "system/cpu_utilization_percentage" in metrics(run.outbox))
        run.metrics({"train/elbo": -2.0}, 2)
    until(run.outbox.is_sent)
    assert only_run_status() == "FINISHED"
    assert metrics(run.outbox)["train/elbo"] == -2.0


def test_a_killed_training_is_shown_as_killed(shipping: Path):
    training = subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE)
    assert training.stdout is not None
    assert training.stdout.readline() == b"started\n"
    training.kill()
    training.wait()
    training.stdout.close()
    (spool,) = all_outboxes(current_workspace())
    until(lambda: spool.status() == "KILLED" and spool.is_sent())
    assert only_run_status() == "KILLED"
    assert metrics(spool)["train/elbo"] == -1.0


@pytest.fixture
def address() -> Iterator[str]:
    """An address with a password at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://user:s3cr3t@127.0.0.1:{taken.getsockname()[1]}"


def assert_kept_and_sent_later(folder: Path, start: RunStart, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training does not feel the missing server; nothing is lost, and the password is written nowhere."""
    begin = time.monotonic()
    with open_training_run(current_workspace(), "key", start) as run:
        for step in range(100):
            run.metrics({"train/elbo": float(step)}, step)
    assert time.monotonic() - begin < 5
    until(lambda: is_free(run.outbox) and "tracking store" in (run.outbox.folder / "ship.log").read_text())
    assert not run.outbox.is_sent()
    with pytest.raises(UserError) as raised:
        sync_all(current_workspace())
    assert len(str(raised.value).splitlines()) == 1
    assert "s3cr3t" not in str(raised.value)
    written = [path for path in (folder / ".vaeline" / "spool").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync_all(current_workspace()).runs == 1
    assert sync_all(current_workspace()).runs == 0
    assert metrics(run.outbox) == {"train/elbo": 99.0}


def test_with_the_server_away_all_is_kept_and_sent_later_once(
    shipping: Path, start: RunStart, address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    assert_kept_and_sent_later(shipping, start, monkeypatch)


def test_with_a_server_that_hangs_too(shipping: Path, start: RunStart, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:s3cr3t@127.0.0.1:{silent.getsockname()[1]}")
        assert_kept_and_sent_later(shipping, start, monkeypatch)


def test_eight_processes_may_start_on_a_new_store_at_once(repository: Path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", MANY], check=True)
    assert len(connect(current_workspace()).search_experiments(filter_string="name = 'experiment'")) == 1


def test_old_spools_are_deleted_once_they_are_sent(store: Path, start: RunStart):
    for key in ("old", "unsent", "new"):
        open_training_run(current_workspace(), key, start).close()
    old, unsent, new = all_outboxes(current_workspace())
    sync_all(current_workspace())
    unsent.append("metrics", step=1, values={"a": 1.0})
    for spool in (old, unsent):
        os.utime(spool.events, (time.time() - 2 * KEEP_S,) * 2)
    prune(current_workspace())
    assert {spool.folder for spool in all_outboxes(current_workspace())} == {unsent.folder, new.folder}
    assert not old.folder.exists()


@pytest.mark.slow
def test_a_server_that_is_stopped_and_goes_on_gets_everything_once(
    shipping: Path, start: RunStart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "files"),
    ]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, *store], stdout=log, stderr=log, start_new_session=True
        )
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        until(answers)
        with open_training_run(current_workspace(), "key", start) as run:
            run.metrics({"train/elbo": 1.0}, 1)
            until(lambda: metrics(run.outbox).get("train/elbo") == 1.0)
            os.killpg(server.pid, signal.SIGSTOP)
            begin = time.monotonic()
            for step in range(2, 100):
                run.metrics({"train/elbo": float(step)}, step)
        assert time.monotonic() - begin < 5
        until(lambda: is_free(run.outbox))
        assert not run.outbox.is_sent()
        os.killpg(server.pid, signal.SIGCONT)
        until(answers)
        sync_all(current_workspace())
        client = connect(current_workspace())
        (sent,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        points = client.get_metric_history(sent.info.run_id, "train/elbo")
        assert sorted(point.step for point in points) == list(range(1, 100))
        assert sent.info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
