"""`vaeline ui`: MLflow's and Prefect's web interfaces on this machine, started and stopped together."""

import http.client
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.processes import Process, spawn, stop
from vaeline.errors import UserError
from vaeline.tracking.store import artifact_location, redact, tracking_uri
from vaeline.workspace import state_folder

HOST = "127.0.0.1"
START_S = 180.0


@dataclass(frozen=True)
class Server:
    """A web interface to start: MODULE run with `arguments`, ready when `health` answers 200."""

    name: str
    module: str
    arguments: Sequence[str]
    port: int
    health: str
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}"


def serve(say: Callable[[str], None]) -> None:
    """Start both interfaces, tell their addresses, and stop them when this is interrupted or one of them ends.

    A server that the environment already names (MLFLOW_TRACKING_URI, PREFECT_API_URL) is told, not started.
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
    uri = tracking_uri()
    artifacts = artifact_location(uri)
    if artifacts is None:
        say(f"MLflow: {redact(uri)} (MLFLOW_TRACKING_URI)")
    else:
        yield mlflow_server(uri, artifacts, free_port(5000))
    if api := os.environ.get("PREFECT_API_URL"):
        say(f"Prefect: {api.removesuffix('/api')} (PREFECT_API_URL)")
    else:
        yield prefect_server(free_port(4200))


def mlflow_server(uri: str, artifacts: str, port: int) -> Server:
    """MLflow's server with one worker (four take 39 s to start) on the store at `uri`."""
    arguments = ["server", "--backend-store-uri", uri, "--artifacts-destination", artifacts]
    where = ["--host", HOST, "--port", str(port), "--workers", "1"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its job runner serves features for language models
    return Server("MLflow", "mlflow", arguments + where, port, "/health", state_folder() / "mlflow-server.log", env)


def prefect_server(port: int) -> Server:
    """Prefect's server on the history that `vaeline run` writes."""
    arguments = ["server", "start", "--host", HOST, "--port", str(port)]
    env = {"PREFECT_UI_API_URL": f"http://{HOST}:{port}/api"}
    return Server("Prefect", "prefect", arguments, port, "/api/health", state_folder() / "prefect-server.log", env)


def free_port(preferred: int) -> int:
    """`preferred` where it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise UserError(f"no free port on {HOST}")


@contextmanager
def started(server: Server) -> Iterator[Process]:
    """The server's process, its output in its log; it and its children are stopped at the end of the block."""
    server.log.parent.mkdir(parents=True, exist_ok=True)
    with server.log.open("w") as log:
        process = spawn([sys.executable, "-m", server.module, *server.arguments], {**os.environ, **server.env}, log)
    try:
        yield process
    finally:
        stop(process)


def wait_until_ready(server: Server, process: Process) -> None:
    """Return once the server answers; raises UserError where it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not answers(server.port, server.health):
        if process.poll() is not None:
            raise UserError(_ended(server, process))
        if time.monotonic() > deadline:
            raise UserError(f"{server.name}'s server does not answer after {START_S:.0f} s; see {server.log}")
        time.sleep(0.2)


def answers(port: int, path: str) -> bool:
    """Whether something on this machine answers `path` with 200, proxies left aside."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
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
