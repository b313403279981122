"""MLflow's and Prefect's servers on this machine; `vaeline ui` starts and stops them together."""

import http.client
import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.services import daemons
from pipeline.services.child_processes import Process, listens, spawn, stop
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import artifact_location, redact, tracking_uri

HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost"}
GUARDS = ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PREFECT_SERVER_API_AUTH_STRING")
MLFLOW, PREFECT = "mlflow-server", "prefect-server"  # daemons
START_S = 300.0


@dataclass(frozen=True)
class Server:
    """A server to start: MODULE run with `arguments`, ready when `health` answers 200."""

    name: str
    daemon: str  # of its note and log in `.vaeline/`
    module: str
    arguments: Sequence[str]
    port: int
    health: str
    env: dict[str, str] = field(default_factory=dict)
    host: str = HOST
    orphaned: signal.Signals = signal.SIGTERM  # what it gets when who started it ends

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{reachable(self.host)}:{self.port}"

    @property
    def log(self) -> Path:
        """Its output."""
        return daemons.log_of(self.daemon)

    @property
    def command(self) -> list[str]:
        """What to start."""
        return [sys.executable, "-m", self.module, *self.arguments]


def serve(say: Callable[[str], None]) -> None:
    """Start both interfaces, tell their addresses, and stop them when this is interrupted or one of them ends.

    A server that the environment names (MLFLOW_TRACKING_URI, PREFECT_API_URL), or that runs already, is told, not
    started.
    Raises UserError, with the last line of its log, where one does not start or ends by itself.
    """
    with ExitStack() as stack:
        running = [(server, stack.enter_context(started(server))) for server in _wanted(say)]
        for server, process in running:
            wait_until_ready(server, process)
            say(f"{server.name}: {server.address}")
        if running:
            say("Ctrl-C stops them." if len(running) > 1 else "Ctrl-C stops it.")
        while running:
            for server, process in running:
                if process.poll() is not None:
                    raise UserError(_ended(server, process))
            time.sleep(0.5)


def _wanted(say: Callable[[str], None]) -> Iterator[Server]:
    uri = tracking_uri(current_workspace())
    artifacts = artifact_location(uri, current_workspace())
    if artifacts is None:
        say(f"MLflow: {redact(uri)} (MLFLOW_TRACKING_URI)")
    elif up := daemons.running(MLFLOW):
        say(f"MLflow: {up.address} (vaeline up)")
    else:
        yield mlflow_server(uri, artifacts, free_port(5000))
    if api := os.environ.get("PREFECT_API_URL"):
        say(f"Prefect: {redact(api).removesuffix('/api')} (PREFECT_API_URL)")
    elif up := daemons.running(PREFECT):
        say(f"Prefect: {up.address} (vaeline up)")
    else:
        yield prefect_server(free_port(4200))


def refuse_open_doors(host: str) -> None:
    """Raises UserError where a server would be reachable from other machines without a password."""
    if host in LOOPBACK:
        return
    wanted = [name for name in GUARDS if not os.environ.get(name)]
    if wanted:
        raise UserError(f"--host {host}: other machines could use the servers without a password; set {_list(wanted)}")
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError(f"--host {host}: MLflow's passwords need another package: pip install 'mlflow[auth]'")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def mlflow_server(uri: str, artifacts: str, port: int, host: str = HOST) -> Server:
    """MLflow's server on the store at `uri`, with one worker (four take 39 s to start); passwords beyond loopback.

    On loopback new experiments keep their artifacts where those of the shells here do, which use the store without
    the server; beyond it, clients cannot reach that folder, and the server hands artifacts on.
    """
    arguments = ["server", "--artifacts-destination", artifacts, "--host", host, "--port", str(port), "--workers", "1"]
    more = ["--default-artifact-root", artifacts] if host in LOOPBACK else ["--app-name", "basic-auth"]
    env = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # may hold a password: not for the list of processes
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner serves features for language models
    }
    return Server("MLflow", MLFLOW, "mlflow", arguments + more, port, "/health", env, host)


def prefect_server(port: int, host: str = HOST) -> Server:
    """Prefect's server on the history that `vaeline run` writes."""
    arguments = ["server", "start", "--host", host, "--port", str(port)]
    env = {"PREFECT_UI_API_URL": f"http://{HOST}:{port}/api"} if host in LOOPBACK else {}
    return Server("Prefect", PREFECT, "prefect", arguments, port, "/api/health", env, host)


def temporary_prefect_server() -> Server:
    """The same without pages, and faster to start: for the time of one run.

    Its end with a killed run is SIGKILL: asked to end, it may wait for ever for a thread of its database driver.
    """
    port = free_port(0)
    app = ["--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error"]
    env = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    arguments = [*app, "--host", HOST, "--port", str(port)]
    return Server("Prefect", "prefect-temporary", "uvicorn", arguments, port, "/api/health", env, HOST, signal.SIGKILL)


def known_prefect() -> str | None:
    """The API of the server that the environment names, or that `vaeline up` left running."""
    server = daemons.running(PREFECT)
    return os.environ.get("PREFECT_API_URL") or (f"{server.address}/api" if server else None)


def told(error: Exception) -> str:
    """The first line of what a server's client says, without passwords; its kind where it says nothing."""
    return redact((str(error).splitlines() or [type(error).__name__])[0])


def reachable(host: str) -> str:
    """Under which name this machine reaches what listens on `host`."""
    return HOST if host in ("0.0.0.0", "::", "localhost") else host


def free_port(preferred: int, host: str = HOST) -> int:
    """`preferred` where it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise UserError(f"--host {host}: no free port there")


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


def wait_until_ready(server: Server, process: Process) -> None:
    """Return once it is this server that answers at its port; raises UserError where it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not (answers(server.port, server.health, reachable(server.host)) and listens(process.pid, server.port)):
        if process.poll() is not None:
            raise UserError(_ended(server, process))
        if time.monotonic() > deadline:
            raise UserError(f"{server.name}'s server does not answer after {START_S:.0f} s; see {server.log}")
        time.sleep(0.2)


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


def _ended(server: Server, process: Process) -> str:
    lines = server.log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"{server.name}'s server ended with exit code {process.returncode}: {last} (see {server.log})"
