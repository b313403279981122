"""The uploader as a process of its own, beside trainings that end well, are killed, or have no server."""

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uploads import is_free, outbox_runs, train, until
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking import uploader
from vaeline.tracking.connection import connect
from vaeline.tracking.uploader import sync_all

TRAINING = """
import time
from vaeline.io.workspace import current_workspace
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import open_training_run
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
def uploading(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository in which uploaders run; waits for their end, so that none outlives the test."""
    monkeypatch.delenv("VAELINE_UPLOADER")
    yield store.parents[1]
    until(lambda: all(map(is_free, outbox_runs(store.parents[1]))))


def stored() -> tuple[str, dict[str, float]]:
    """Status and latest metrics of the store's only run; nothing where there is none."""
    client = connect(current_workspace())
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) <= 1
    return (runs[0].info.status, dict(runs[0].data.metrics)) if runs else ("", {})


def test_a_training_is_seen_while_it_runs_and_when_it_has_ended(uploading: Path):
    with train() as run:
        run.metrics({"train/elbo": -1.0}, 1)
        until(lambda: "train/elbo" in stored()[1])
        assert stored()[0] == "RUNNING"
        run.metrics({"train/elbo": -2.0}, 2)
    until(run.outbox.is_sent)
    status, metrics = stored()
    assert (status, metrics["train/elbo"]) == ("FINISHED", -2.0)


def test_a_killed_training_is_shown_as_killed(uploading: Path):
    training = subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE)
    assert training.stdout is not None
    assert training.stdout.readline() == b"started\n"
    training.kill()
    training.wait()
    training.stdout.close()
    (run,) = outbox_runs(uploading)
    until(lambda: run.status() == "KILLED" and run.is_sent())
    status, metrics = stored()
    assert (status, metrics["train/elbo"]) == ("KILLED", -1.0)


@pytest.mark.parametrize("server", ["absent", "hung"])
def test_without_a_server_all_is_kept_and_sent_later_once(
    uploading: Path, monkeypatch: pytest.MonkeyPatch, server: str
):
    """A training does not feel it; nothing is lost, and the password is written nowhere."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if server == "hung":
            silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:s3cr3t@127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with train() as run:
            for step in range(100):
                run.metrics({"train/elbo": float(step)}, step)
        assert time.monotonic() - begin < 5
        until(lambda: is_free(run.outbox) and "tracking store" in run.outbox.log.read_text())
        assert not run.outbox.is_sent()
        with pytest.raises(UserError) as raised:
            sync_all(current_workspace())
    assert len(str(raised.value).splitlines()) == 1
    assert "s3cr3t" not in str(raised.value)
    written = [path for path in (uploading / ".vaeline" / "outbox").rglob("*") if path.is_file()]
    assert {run.outbox.log, run.outbox.outbox.path} <= set(written)
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [sync_all(current_workspace()).split(" of ")[1] for _ in range(2)] == ["1 runs sent", "0 runs sent"]
    assert stored()[1] == {"train/elbo": 99.0}


def test_after_each_failure_the_uploader_waits_longer_up_to_a_minute_and_tries_once_more_at_the_end(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 16: a server that is away is not asked every two seconds."""
    run, clock, tries = train(), [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] > 300:
            run.close()

    def refuse(*_: object, **_options: object) -> None:
        tries.append(clock[0])
        raise UserError("away")

    monkeypatch.setattr(uploader, "connect", refuse)
    monkeypatch.setattr(uploader.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(uploader.time, "sleep", sleep)
    assert not uploader.follow(run.outbox, current_workspace())
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert pauses[:-1] == pytest.approx([4, 8, 16, 32, 60, 60, 60], abs=0.2)
    assert tries[-1] > 300


def test_eight_processes_may_start_on_a_new_store_at_once(repository: Path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", MANY], check=True)
    assert len(connect(current_workspace()).search_experiments(filter_string="name = 'experiment'")) == 1
