"""An MLflow server that refuses, hangs or dies in the middle of a training: the same model, no point lost or twice."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_workspaces import CrashWorkspace, StageStates
from pipeline.services.servers import free_port
from uploads import is_free, outbox_events, outbox_runs, until
from vaeline.io.digests import model_digest

pytestmark = [pytest.mark.torture, pytest.mark.timeout(7200)]
STEPS = 4000
Points = Counter[tuple[str, int]]


class Server:
    """`mlflow server` with one worker and a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port(0)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = f"mlflow server --host 127.0.0.1 --port {self.port} --workers 1"
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command.split(), *store], stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers)

    def answers(self) -> bool:
        from urllib.request import urlopen

        try:
            with urlopen(f"{self.address}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)

    def points(self, workspace: CrashWorkspace) -> Points:
        """How often each (name, step) of its runs is in the database."""
        if not (self.folder / "server.db").exists():
            return Counter()
        query = (
            "select metrics.key, step from metrics join tags on tags.run_uuid = metrics.run_uuid "
            "where tags.key = 'vaeline.outbox' and tags.value = ?"
        )
        found: Points = Counter()
        with sqlite3.connect(f"file:{self.folder}/server.db?mode=ro", uri=True) as database:
            for event in outbox_events(workspace.folder, "start"):
                found.update(database.execute(query, [event["token"]]).fetchall())
        return found


def reported(workspace: CrashWorkspace) -> Points:
    """How often each point is in the outbox."""
    found: Points = Counter()
    for event in outbox_events(workspace.folder, "metrics"):
        found.update((name, event["step"]) for name in event["values"])
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started yet; it stays up from one test to the next, for its start takes long."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


def run(workspace: CrashWorkspace, address: str, *command: str, **more: str) -> "subprocess.Popen[str]":
    ours = {
        "VAELINE_CHECKPOINT_SECONDS": "1",
        "VAELINE_LOG_EVERY": "1",
        "VAELINE_DEVICE": "cpu",
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "DVC_ROOT": str(workspace.folder),
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=workspace.folder,
        env=os.environ | ours | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def synced(workspace: CrashWorkspace, address: str) -> bool:
    """Whether `vaeline sync` sent all; a server that a busy machine makes slow is one clear line, and asked again."""
    sync = run(workspace, address, "pipeline.cli", "sync", MLFLOW_HTTP_REQUEST_TIMEOUT="60")
    said, _ = sync.communicate()
    assert "Traceback" not in said, said
    assert sync.returncode in (0, 1), said
    return sync.returncode == 0


def prepared(states: StageStates) -> CrashWorkspace:
    """Ready to train for some hundred steps."""
    workspace = states.trial("train")
    params = workspace.folder / "params.yaml"
    long = params.read_text().replace("epochs: 2", f"epochs: {STEPS // 3}")
    long = long.replace("patience: 10", f"patience: {STEPS}")
    params.write_text(long.replace("    - 16\n", "    - 256\n    - 256\n"))
    return workspace


@pytest.mark.parametrize("outage", ["refused", "hung", "killed", "hung for ever", "killed for ever"])
def test_an_outage_in_the_middle_of_a_training_costs_nothing(trained: StageStates, server: Server, outage: str):
    alone, workspace = prepared(trained), prepared(trained)
    alone.run_ok("train", VAELINE_CHECKPOINT_SECONDS="60")
    if outage != "refused" and not server.answers():
        server.start()
    training = run(workspace, server.address, "pipeline.stages.runner", "train")
    assert training.stdout is not None
    if outage != "refused":
        until(lambda: sum(server.points(workspace).values()) > 0 or training.poll() is not None)
        server.signal(signal.SIGSTOP if outage.startswith("hung") else signal.SIGKILL)
    before = sum(server.points(workspace).values())
    passing = outage in ("hung", "killed")
    if passing:
        time.sleep(10)
        server.signal(signal.SIGCONT) if outage == "hung" else server.start()
        assert training.poll() is None, "the outage is in the middle"
    said, _ = training.communicate()
    assert training.returncode == 0, said
    assert model_digest(workspace.folder / "models") == model_digest(alone.folder / "models")
    until(lambda: all(map(is_free, outbox_runs(workspace.folder))))
    ended = sum(server.points(workspace).values())
    if outage.startswith("hung"):
        server.signal(signal.SIGCONT)
    elif not server.answers():
        server.start()
    until(lambda: synced(workspace, server.address))
    expected, found = reported(workspace), server.points(workspace)
    assert not passing or ended == sum(expected.values()), "sent by itself once the server was back"
    print(f"\n{outage}: {before} points before, {ended} when the training ended, {sum(found.values())} after sync")
    assert set(expected.values()) == set(found.values()) == {1}
    assert found == expected
    assert len(found) > STEPS
    for folder in (alone.folder, workspace.folder):
        shutil.rmtree(folder)
