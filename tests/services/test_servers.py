"""Servers: kept running and found again, and only they; ports, and who may use Prefect's."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from pipeline.services.child_processes import ProcessRecord
from pipeline.services.prefect_app import is_own
from pipeline.services.servers import Server, free_port, running, started, stop_service, wait_until_ready
from pipeline.services.worker import JOB, POOL, TEMPLATE, make_pool
from uploads import until
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import alive, answer, ask

HERE = Workspace()


@pytest.mark.parametrize("killed", [False, True])
def test_a_service_is_found_by_a_later_process_and_ended_with_its_children(toy: Path, killed: bool):
    code = "from pipeline.services.servers import *; from vaeline.io.workspace import Workspace"
    sleep = ["sh", "-c", "sleep 300 & echo $!; wait"]
    subprocess.run([sys.executable, "-c", f"{code}; keep_running(Workspace(), 'd', {sleep}, {{}}, 'a')"], check=True)
    found = running(HERE, "d")
    assert found is not None
    assert found.address == "a"
    assert os.getsid(found.pid) == found.pid, "a closed terminal does not reach it"
    log = toy / ".vaeline" / "d.log"
    until(lambda: log.read_text().strip())
    child = psutil.Process(int(log.read_text()))
    if killed:
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: not running(HERE, "d"))
    assert stop_service(HERE, "d")
    assert not alive([child])
    assert running(HERE, "d") is None
    assert not stop_service(HERE, "d")


def test_a_process_of_others_under_the_recorded_number_is_not_stopped(toy: Path):
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as other:
        replace(ProcessRecord.of(other.pid), started="earlier").write(HERE.make_state() / "d.json")
        assert running(HERE, "d") is None
        assert not stop_service(HERE, "d")
        assert other.poll() is None
        other.kill()


def test_a_taken_port_is_not_used():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_another_server_at_the_port_is_not_taken_for_the_one_just_started(toy: Path):
    """Two that start at once may have found the same port free."""
    port = free_port(0)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    late = Server("late", "late", command, toy / "late.log", port, "/")
    with started(replace(late, log=toy / "other.log")) as other:
        wait_until_ready(late, other)
        with started(late) as process, pytest.raises(UserError, match=r"late's server ended: .*Address already in use"):
            wait_until_ready(late, process)


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("127.0.0.1:4200", None, True),
        ("127.0.0.1:4200", "http://localhost:4200", True),
        ("[::1]:4200", "http://[::1]:4200", True),
        ("127.0.0.1:4200", "http://127.0.0.1:8000", False),
        ("127.0.0.1:4200", "https://example.org", False),
        ("127.0.0.1:4200", "null", False),
        ("127.0.0.1:4200", "http://127.0.0.1:port", False),
        ("rebound.example.org:4200", None, False),
        ("rebound.example.org:4200", "http://rebound.example.org:4200", False),
        ("", None, False),
    ],
)
def test_only_this_machines_names_and_the_servers_own_pages_are_let_in(host: str, origin: str | None, own: bool):
    """Mistake 22: Host and Origin."""
    assert is_own(host, origin) == own


def test_a_foreign_web_page_starts_nothing_at_prefects_server(prefect_api: str):
    flow = ask(prefect_api, "/flows/", {"name": "a web page's"})["id"]
    deployment = ask(prefect_api, "/deployments/", {"name": "target", "flow_id": flow})["id"]
    port = int(prefect_api.split(":")[2].partition("/")[0])
    for headers, status in (
        ({"Host": f"127.0.0.1:{port}"}, 201),
        ({"Origin": "https://example.org"}, 403),
        ({"Host": f"example.org:{port}"}, 403),
        ({"Origin": f"http://127.0.0.1:{port}"}, 201),
    ):
        assert answer(prefect_api, f"/deployments/{deployment}/create_flow_run", {}, **headers)[0] == status, headers
    assert len(ask(prefect_api, "/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}})) == 2


def test_job_variables_of_a_flow_run_choose_neither_command_nor_environment(prefect_api: str):
    """Mistake 22: job_variables; a pool of an earlier version is brought up to date."""
    with SyncPrefectClient(prefect_api) as client:
        default = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=default))
        make_pool(client)
        assert client.read_work_pool(POOL).base_job_template == TEMPLATE
    values = {"command": "touch /tmp/x", "env": {"LD_PRELOAD": "x.so"}, "env.A": "b", "working_dir": "/etc"}
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        job = asyncio.run(ProcessJobConfiguration.from_template_and_values(TEMPLATE, values))
    assert (job.command, job.env, job.working_dir) == (JOB["command"], {}, None)
