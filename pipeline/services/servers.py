"""MLflow's and Prefect's servers on this machine: for the time of a block, or kept running until `vaeline down`."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from pipeline.services.child_processes import Process, ProcessRecord, listens, members, spawn, stop, stop_group
from vaeline.errors import UserError
from vaeline.io.run_context import VARIABLE, RunContext
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import artifact_location, redact, tracking_uri

HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost"}
PASSWORDS = ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PREFECT_SERVER_API_AUTH_STRING")
MLFLOW, PREFECT, WORKER = "mlflow-server", "prefect-server", "worker"
PATIENCE_S = {WORKER: 40.0}  # to end after SIGTERM: it waits for its runs, which write checkpoints
START_S = 300.0


@dataclass(frozen=True)
class Server:
    """A server to start: a Python module run with `arguments`, ready when `health` answers 200."""

    title: str
    name: str  # of its record
    module: str
    arguments: Sequence[str]
    log: Path
    port: int
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = HOST
    orphaned: signal.Signals = signal.SIGTERM  # what it gets when who started it ends

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{_reachable(self.host)}:{self.port}"

    @property
    def command(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", self.module, *self.arguments]


def mlflow_server(workspace: Workspace, port: int, host: str = HOST) -> Server:
    """MLflow's server on the workspace's store, with one worker (four take 39 s to start); passwords beyond loopback.

    On loopback new experiments keep their artifacts where those of the shells here do, which use the store without
    the server; beyond it, clients cannot reach that folder, and the server hands artifacts on.
    """
    uri = tracking_uri(workspace)
    artifacts = artifact_location(uri, workspace) or ""
    arguments = ["server", "--artifacts-destination", artifacts, "--host", host, "--port", str(port), "--workers", "1"]
    arguments += ["--default-artifact-root", artifacts] if host in LOOPBACK else ["--app-name", "basic-auth"]
    env = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # may hold a password: not for the list of processes
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner serves features for language models
    }
    return Server("MLflow", MLFLOW, "mlflow", arguments, _log(workspace, MLFLOW), port, "/health", env, host)


def prefect_server(workspace: Workspace, port: int, host: str = HOST) -> Server:
    """Prefect's server on the history that `vaeline run` writes; on loopback it answers no foreign web page."""
    app = "pipeline.services.prefect_app:create_app" if host in LOOPBACK else "prefect.server.api.server:create_app"
    root = str(Path(__file__).parents[2])
    arguments = ["--factory", app, "--app-dir", root, "--lifespan", "on", "--log-level", "warning", "--host", host]
    arguments += ["--port", str(port)]
    env = {"PREFECT__SERVER_FINAL": "1"}
    if host in LOOPBACK:
        env["PREFECT_UI_API_URL"] = f"http://{HOST}:{port}/api"
    return Server("Prefect", PREFECT, "uvicorn", arguments, _log(workspace, PREFECT), port, "/api/health", env, host)


def temporary_prefect_server(workspace: Workspace) -> Server:
    """The same without pages, and faster to start: for the time of one run.

    Its end with a killed run is SIGKILL: asked to end, it may wait for ever for a thread of its database driver.
    """
    server = prefect_server(workspace, free_port(0))
    env = {**server.env, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    return replace(server, log=_log(workspace, "prefect-temporary"), env=env, orphaned=signal.SIGKILL)


def known_prefect(workspace: Workspace) -> str | None:
    """The API of the server that the environment names, or that `vaeline up` left running."""
    server = running(workspace, PREFECT)
    return os.environ.get("PREFECT_API_URL") or (f"{server.address}/api" if server else None)


def require_passwords(host: str) -> None:
    """Raises UserError where a server would be reachable from other machines without a password."""
    if host in LOOPBACK:
        return
    if missing := [name for name in PASSWORDS if not os.environ.get(name)]:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise UserError(f"--host {host}: other machines could use the servers without a password; set {names}")
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError(f"--host {host}: MLflow's passwords need another package: pip install 'mlflow[auth]'")


@contextmanager
def started(server: Server) -> Iterator[Process]:
    """The server's process, its output in its log; it and its children are stopped at the end of the block."""
    server.log.parent.mkdir(parents=True, exist_ok=True)
    with server.log.open("w") as log:
        process = spawn(server.command, {**os.environ, **server.env}, log, orphaned=server.orphaned)
    try:
        yield process
    finally:
        stop(process)


def keep_running(
    workspace: Workspace, name: str, command: Sequence[str], env: Mapping[str, str], address: str
) -> Process:
    """Start a service that outlives this process; its output goes to `.vaeline/NAME.log`, the last one's to .log.old.

    Its record is `.vaeline/NAME.json`; what it starts carries its name in the environment, by which what a killed
    service left is found.
    """
    log = _log(workspace, name)
    workspace.make_state()
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.old"))
    context = RunContext.read().environment(service=_service(workspace, name))
    with log.open("w") as output:
        process = spawn(command, {**os.environ, **env, **context}, output, orphaned=None)
    ProcessRecord.of(process.pid, address=address).write(_record(workspace, name))
    return process


def running(workspace: Workspace, name: str) -> ProcessRecord | None:
    """The service of this name, where it runs."""
    found = ProcessRecord.read(_record(workspace, name))
    return found if found and found.lives else None


def stop_service(workspace: Workspace, name: str) -> bool:
    """Stop a service and all that it started and left in its group; whether there was anything to stop."""
    known = ProcessRecord.read(_record(workspace, name))
    found = known is not None and (known.lives or _left_members(known.pid, _service(workspace, name)))
    if known and found:
        stop_group(known.pid, PATIENCE_S.get(name, 20.0))
    _record(workspace, name).unlink(missing_ok=True)
    return found


def _left_members(group: int, service: str) -> bool:
    for process in members(group):
        with suppress(psutil.Error):
            if json.dumps(service) in process.environ().get(VARIABLE, ""):
                return True
    return False


def _service(workspace: Workspace, name: str) -> str:
    return f"{workspace.state.absolute()}/{name}"


def _record(workspace: Workspace, name: str) -> Path:
    return workspace.state / f"{name}.json"


def _log(workspace: Workspace, name: str) -> Path:
    return workspace.state / f"{name}.log"


def free_port(preferred: int, host: str = HOST) -> int:
    """`preferred` where it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((host, port))
                return int(probe.getsockname()[1])
    raise UserError(f"--host {host}: no free port there")


def wait_until_ready(server: Server, process: Process) -> None:
    """Return once it is this server that answers at its port; raises UserError where it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not (answers(server.port, server.health, _reachable(server.host)) and listens(process.pid, server.port)):
        check_running(server, process)
        if time.monotonic() > deadline:
            raise UserError(f"{server.title}'s server does not answer after {START_S:.0f} s; see {server.log}")
        time.sleep(0.2)


def check_running(server: Server, process: Process) -> None:
    """Raises UserError, with the last line of its log, where the server has ended."""
    if process.poll() is not None:
        lines = [line.strip() for line in server.log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "no output"
        raise UserError(f"{server.title}'s server ended with exit code {process.returncode}: {last} (see {server.log})")


def answers(port: int, path: str, host: str = HOST) -> bool:
    """Whether something on this machine answers `path` with 200, proxies left aside."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def first_line(error: Exception) -> str:
    """The first line of a client's error, without passwords; its kind where it has none."""
    return redact((str(error).splitlines() or [type(error).__name__])[0])


def _reachable(host: str) -> str:
    """The name by which this machine reaches what listens on `host`."""
    return HOST if host in ("0.0.0.0", "::", "localhost") else host
