"""Two or three commands at once in a clone that has nothing yet: each does its work or finds it done."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pipeline.services.servers import free_port, prefect_server, started, temporary_prefect_server, wait_until_ready
from uploads import until
from vaeline.io.workspace import Workspace
from workspaces import alive, begin, lines_with, tiny_clone, vaeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_of_three_first_runs_at_once_one_works_and_the_others_find_it_done(toy: Path):
    (toy / "train.sh").write_text("echo x >> tries; sleep 2; cp raw.txt model.txt\n")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: vaeline("run", cwd=toy), range(3)))
    assert sum("all stages up to date\n" in run.stdout for run in done) == 2
    assert sum("fetch ran, train ran, sample ran" in run.stderr for run in done) == 1
    assert sum(len(lines_with(run.stderr, "another run (process", "is at work here: waiting")) for run in done) == 2
    assert (toy / "tries").read_text() == "x\n"


def test_two_servers_may_start_on_one_new_database(toy: Path, monkeypatch: pytest.MonkeyPatch):
    """As those of `vaeline run` and `vaeline up` do."""
    database = f"sqlite+aiosqlite:///{Workspace().make_state().absolute()}/prefect.db"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", database)
    servers = [prefect_server(Workspace(), free_port(0)), temporary_prefect_server(Workspace())]
    with started(servers[0]) as first, started(servers[1]) as second:
        wait_until_ready(servers[0], first)
        wait_until_ready(servers[1], second)


def test_two_ups_start_one_of_each_and_a_down_meanwhile_stops_what_they_started(tmp_path: Path, own_code: None):
    clone = tiny_clone(tmp_path)

    ups = [begin("up", cwd=clone) for _ in range(2)]
    services = ("mlflow-server", "prefect-server", "worker")
    try:
        until((clone / ".vaeline" / "prefect-server.json").exists, 300)
        down = begin("down", cwd=clone)
        outputs = [process.communicate(timeout=900)[0] for process in (*ups, down)]
        assert [process.returncode for process in (*ups, down)] == [0, 0, 0], outputs
        waited = "another `vaeline up` or `vaeline down` is at work here: waiting for its end\n"
        assert sum(waited in output for output in outputs) == 2
        assert "stopped: worker, prefect-server, mlflow-server" in outputs[2]
        records = [clone / ".vaeline" / f"{name}.json" for name in services]
        left = [psutil.Process(json.loads(record.read_text())["pid"]) for record in records if record.exists()]
        if left:  # `down` came between the two
            assert len(alive(left)) == 3
            assert sum("already running" in output for output in outputs) == 0
        else:
            assert sum(output.count("already running") for output in outputs) == 3, "the second found all three"
    finally:
        vaeline("down", cwd=clone)
        for process in (*ups, down):
            process.kill()
            process.wait()
    assert not [name for name in services if (clone / ".vaeline" / f"{name}.json").exists()]
