"""`vaeline up`, `down` and `ui`: MLflow's server, Prefect's and a worker, kept running, stopped, or shown."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pipeline.services.child_processes import Process
from pipeline.services.dvc_command import error_line
from pipeline.services.servers import (
    HOST,
    LOOPBACK,
    MLFLOW,
    PREFECT,
    START_S,
    WORKER,
    Server,
    check_running,
    free_port,
    keep_running,
    known_prefect,
    mlflow_server,
    prefect_server,
    require_passwords,
    running,
    started,
    stop_service,
    wait_until_ready,
)
from vaeline.errors import UserError
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import artifact_location, redact, tracking_uri

Echo = Callable[[str], None]


def up(workspace: Workspace, echo: Echo, host: str = HOST) -> None:
    """Start what does not run yet, register the deployments with a new worker, and print the addresses.

    A server that the environment names (MLFLOW_TRACKING_URI, PREFECT_API_URL) is used, not started. Raises UserError
    where a server would be open to other machines without a password, or does not start; what did start stays.
    """
    require_passwords(host)
    with locked(workspace.make_state() / "up.lock"):
        processes = []
        for server in _servers_to_start(workspace, echo, host):
            stop_service(workspace, server.name)  # what a killed one left
            process = keep_running(workspace, server.name, server.command, server.env, server.address)
            processes.append((server, process))
        for server, process in processes:
            wait_until_ready(server, process)
            echo(f"{server.title}: {server.address}")
        api = known_prefect(workspace)
        if api is None:
            raise UserError(f"Prefect's server ended as soon as it had started; see {workspace.state}/{PREFECT}.log")
        tracking = _tracking(workspace, host)
        _start_worker(workspace, echo, api, tracking)
    if tracking:
        echo(f"for a shell, with user and password: export MLFLOW_TRACKING_URI={tracking['MLFLOW_TRACKING_URI']}")
    echo(f"for prefect's own commands: export PREFECT_API_URL={redact(api)}")
    echo(f"logs in {workspace.state}/; vaeline down stops them")


def down(workspace: Workspace, echo: Echo) -> None:
    """Stop what `vaeline up` started, the worker first, and wait for its end."""
    with locked(workspace.make_state() / "up.lock"):
        stopped = [name for name in (WORKER, PREFECT, MLFLOW) if stop_service(workspace, name)]
    echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def serve(workspace: Workspace, echo: Echo) -> None:
    """Start both web interfaces, print their addresses, and stop them when this is interrupted or one of them ends.

    A server that the environment names, or that runs already, is not started.
    Raises UserError, with the last line of its log, where one does not start or ends by itself.
    """
    with ExitStack() as stack:
        processes = [(server, stack.enter_context(started(server))) for server in _servers_to_start(workspace, echo)]
        for server, process in processes:
            wait_until_ready(server, process)
            echo(f"{server.title}: {server.address}")
        if processes:
            echo("Ctrl-C stops them." if len(processes) > 1 else "Ctrl-C stops it.")
        while processes:
            for server, process in processes:
                check_running(server, process)
            time.sleep(0.5)


def _servers_to_start(workspace: Workspace, echo: Echo, host: str = HOST) -> Iterator[Server]:
    """The servers that neither the environment names nor run already; prints the address of the others."""
    uri, api = tracking_uri(workspace), os.environ.get("PREFECT_API_URL")
    if artifact_location(uri, workspace) is None:
        echo(f"MLflow: {redact(uri)} (MLFLOW_TRACKING_URI)")
    elif service := running(workspace, MLFLOW):
        echo(f"MLflow: {service.address}, already running")
    else:
        yield mlflow_server(workspace, _port(echo, "MLflow", 5000, host), host)
    if api:
        echo(f"Prefect: {redact(api).removesuffix('/api')} (PREFECT_API_URL)")
    elif service := running(workspace, PREFECT):
        echo(f"Prefect: {service.address}, already running")
    else:
        yield prefect_server(workspace, _port(echo, "Prefect", 4200, host), host)


def _port(echo: Echo, title: str, preferred: int, host: str) -> int:
    port = free_port(preferred, host)
    if port != preferred:
        echo(f"{title}: port {preferred} is taken here, {port} instead")
    return port


def _tracking(workspace: Workspace, host: str) -> dict[str, str]:
    """A worker beside a server that other machines use too keeps to it, for its experiments' artifacts are there."""
    if host in LOOPBACK or artifact_location(tracking_uri(workspace), workspace) is None:
        return {}
    server = running(workspace, MLFLOW)
    return {
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"],
        "MLFLOW_TRACKING_URI": server.address if server else tracking_uri(workspace),
    }


def _start_worker(workspace: Workspace, echo: Echo, api: str, tracking: dict[str, str]) -> None:
    """Register the deployments and start a worker for them, unless one runs for this very server."""
    known = running(workspace, WORKER)
    if known and known.address == redact(api):
        echo("worker: already running")
        return
    stop_service(workspace, WORKER)
    os.environ["PREFECT_API_URL"] = api  # before Prefect is imported
    from pipeline.services.worker import deploy

    deploy()
    command = [sys.executable, "-m", "pipeline.services.worker"]
    process = keep_running(workspace, WORKER, command, tracking | {"PYTHONUNBUFFERED": "1"}, redact(api))
    _wait_for_line(workspace.state / f"{WORKER}.log", process, "started!")
    echo("worker: waits for runs of the deployments nightly, on-demand, sweep and trial")


def _wait_for_line(log: Path, process: Process, words: str) -> None:
    """Return once the worker's log has these words. Raises UserError where it ends first, or takes too long."""
    deadline = time.monotonic() + START_S
    while words not in (text := log.read_text(errors="replace")):
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            why = f"silent for {START_S:.0f} s" if code is None else error_line(text.splitlines(), code)
            raise UserError(f"the worker did not start: {why} (see {log})")
        time.sleep(0.2)
