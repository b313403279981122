"""Servers: kept running and found again, and only they; ports, and who may use Prefect's."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from starlette.datastructures import Headers

from pipeline.services.child_processes import ProcessRecord
from pipeline.services.guarded_app import LOOPBACK, create_app, is_own
from pipeline.services.servers import Server, free_port, mlflow_server, running, started, stop_service, wait_until_ready
from pipeline.services.worker import JOB, POOL, TEMPLATE, make_pool
from uploads import until
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.tracking.connection import connect
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


def test_a_copy_leaves_the_services_of_the_original_alone_and_a_moved_folder_stops_its_own(toy: Path):
    """Mistake 22: another folder's services."""
    code = "from pipeline.services.servers import *; from vaeline.io.workspace import Workspace"
    start = f"{code}; keep_running(Workspace(), 'd', ['sleep', '300'], {{}}, 'a')"
    subprocess.run([sys.executable, "-c", start], check=True)
    there, copy = Workspace(toy, toy), Workspace(toy, toy.with_name(f"{toy.name}-copy"))
    shutil.copytree(there.state, copy.state)
    assert running(copy, "d") is None
    assert not stop_service(copy, "d")
    assert running(there, "d")
    moved = Workspace(toy, toy.with_name(f"{toy.name}-moved"))
    moved.repository.mkdir()
    there.state.rename(moved.state)
    assert running(moved, "d")
    assert stop_service(moved, "d")


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


def headers_of(host: str, origin: str | None, site: str | None = None, dest: str | None = None) -> dict[str, str]:
    """What a browser sends with a request of a page."""
    found = {"Host": host, "Origin": origin, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        (headers_of("127.0.0.1:4200", None), True),
        (headers_of("127.0.0.1:4200", "http://localhost:4200", "cross-site"), True),
        (headers_of("[::1]:4200", "http://[::1]:4200"), True),
        (headers_of("team.example.org", "https://team.example.org"), True),
        (headers_of("127.0.0.1:4200", None, "same-origin", "script"), True),
        (headers_of("127.0.0.1:4200", None, "cross-site", "document"), True),  # a link that somebody follows
        (headers_of("127.0.0.1:4200", None, "cross-site", "iframe"), False),
        (headers_of("127.0.0.1:4200", None, "same-site", "script"), False),  # of another port
        (headers_of("127.0.0.1:4200", "http://127.0.0.1:8000"), False),
        (headers_of("127.0.0.1:4200", "http://127.0.0.1:8000", "cross-site", "document"), False),  # a form
        (headers_of("127.0.0.1:4200", "https://team.example.org:4200"), False),
        (headers_of("team.example.org", "https://example.org"), False),
        (headers_of("127.0.0.1:4200", "null"), False),
        (headers_of("127.0.0.1:4200", "http://127.0.0.1:port"), False),
        (headers_of("rebound.example.org:4200", None), False),
        (headers_of("rebound.example.org:4200", "http://rebound.example.org:4200"), False),
        (headers_of("", None), False),
    ],
)
def test_only_allowed_names_and_the_servers_own_pages_are_let_in(headers: dict[str, str], own: bool):
    """Mistake 22: Host and Origin."""
    assert is_own(Headers(headers), LOOPBACK | {"team.example.org"}) == own


FOREIGN = [
    {"Origin": "https://example.org"},
    {"Origin": "http://localhost:8000"},  # which MLflow alone lets in
    {"Host": "rebound.example.org:5000", "Origin": "http://rebound.example.org:5000"},
    {"Host": "10.0.0.1:5000"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "script"},
]


@mock.patch.dict(os.environ)
@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi")
def test_a_foreign_web_page_neither_reads_nor_writes_at_mlflows_server(store: Path, monkeypatch: pytest.MonkeyPatch):
    """The real application, on the store that the shells here use. It sets its registry for the whole process."""
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    connect(current_workspace()).create_experiment("of the shell")
    for name, value in mlflow_server(current_workspace(), 5000).env.items():
        monkeypatch.setenv(name, value)
    app, api = create_app(), "/api/2.0/mlflow/experiments"

    def request(method: str, path: str, headers: dict[str, str], **content: object) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5000") as client:
                return await client.request(method, f"{api}{path}", headers=headers, **content)

        return asyncio.run(send())

    for headers in FOREIGN:
        assert request("GET", "/search?max_results=9", headers).status_code == 403, headers
        assert request("POST", "/create", headers, json={"name": "planted"}).status_code == 403, headers
        wish = headers | {"Access-Control-Request-Method": "POST"}
        assert request("OPTIONS", "/create", wish).status_code == 403, headers
    own = {"Origin": "http://127.0.0.1:5000"}
    assert request("POST", "/create", own, json={"name": "of a page"}).status_code == 200
    names = {found["name"] for found in request("GET", "/search?max_results=9", {}).json()["experiments"]}
    assert names == {"Default", "of the shell", "of a page"}


def test_a_foreign_web_page_starts_nothing_at_prefects_server(prefect_api: str):
    flow = ask(prefect_api, "/flows/", {"name": "a web page's"})["id"]
    deployment = ask(prefect_api, "/deployments/", {"name": "target", "flow_id": flow})["id"]
    port = prefect_api.split(":")[2].partition("/")[0]
    wanted = [(headers, 403) for headers in FOREIGN]
    for headers, status in [*wanted, ({}, 201), ({"Origin": f"http://127.0.0.1:{port}"}, 201)]:
        assert answer(prefect_api, f"/deployments/{deployment}/create_flow_run", {}, **headers)[0] == status, headers
        assert (answer(prefect_api, f"/deployments/{deployment}", **headers)[0] == 403) == (status == 403), headers
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
