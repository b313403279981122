"""MLflow's server, Prefect's and a worker on this machine: for the time of a block, or from `vaeline up` to `down`."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from pipeline.services.child_processes import Process, ProcessRecord, members, serves, spawn, stop, stop_group
from pipeline.services.dvc_command import Log, cache_folder, error_line
from vaeline.errors import UserError, redact
from vaeline.io.locks import locked
from vaeline.io.workspace import RunContext, Workspace
from vaeline.tracking.connection import ML_PAGES, SQLITE, artifact_location, connect, tracking_uri, usable_uri

HOST = "127.0.0.1"
MLFLOW, PREFECT, WORKER = "mlflow-server", "prefect-server", "worker"
PATIENCE_S = {WORKER: 40.0}  # to end after SIGTERM: it waits for its runs, which write checkpoints
ML_PAGE = f"/#/experiments?{ML_PAGES}"  # MLflow's list of experiments
START_S = 300.0


@dataclass(frozen=True)
class Server:
    """A server to start on loopback, ready when its port answers `health` with 200."""

    title: str
    name: str  # of its record
    command: Sequence[str]
    log: Path
    port: int
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    orphaned: signal.Signals = signal.SIGTERM  # what it gets when who started it ends

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{HOST}:{self.port}"

    @property
    def page(self) -> str:
        """The page to open there."""
        return ML_PAGE if self.name == MLFLOW else ""


def _guarded(workspace: Workspace, title: str, name: str, port: int, health: str, env: Mapping[str, str]) -> Server:
    """A server of the application that `env` names, which answers no foreign web page."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "pipeline.services.guarded_app:create_app"]
    command += ["--app-dir", str(Path(__file__).parents[2]), "--lifespan", "on", "--log-level", "warning"]
    command += ["--host", HOST, "--port", str(port)]
    return Server(title, name, command, _file(workspace, name, "log"), port, health, env)


def mlflow_server(workspace: Workspace, port: int) -> Server:
    """MLflow's server on the workspace's store.

    New experiments keep their artifacts where those of the shells here do, which use the store without the server.
    """
    if (uri := usable_uri(workspace)).startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        connect(workspace)  # makes it whole; the server, killed meanwhile, would leave half of it
    artifacts = artifact_location(uri, workspace) or ""
    env = {
        "VAELINE_GUARDED_APP": "mlflow.server.fastapi_app:app",
        "MLFLOW_BACKEND_STORE_URI": uri,  # may hold a password: not for the list of processes
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner serves features for language models
    }
    return _guarded(workspace, "MLflow", MLFLOW, port, "/health", env)


def prefect_server(workspace: Workspace, port: int) -> Server:
    """Prefect's server on the history that `vaeline run` writes."""
    env = {"VAELINE_GUARDED_APP": "prefect.server.api.server:create_app", "PREFECT__SERVER_FINAL": "1"}
    env["PREFECT_UI_API_URL"] = f"http://{HOST}:{port}/api"
    return _guarded(workspace, "Prefect", PREFECT, port, "/api/health", env)


def temporary_prefect_server(workspace: Workspace) -> Server:
    """The same without pages, and faster to start: for the time of one run.

    Its end with a killed run is SIGKILL: asked to end, it may wait for ever for a thread of its database driver.
    """
    server = prefect_server(workspace, free_port(0))
    env = {**server.env, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    return replace(server, log=_file(workspace, "prefect-temporary", "log"), env=env, orphaned=signal.SIGKILL)


def known_prefect(workspace: Workspace) -> str | None:
    """The API of the server that the environment names, or that `vaeline up` left running."""
    server = running(workspace, PREFECT)
    return os.environ.get("PREFECT_API_URL") or (f"{server.address}/api" if server else None)


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

    Its record is `.vaeline/NAME.json`; what it starts carries the record's path in the environment, by which what a
    killed service left is found.
    """
    workspace.make_state()
    record, log = _file(workspace, name), _file(workspace, name, "log")
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.old"))
    context = RunContext.read().environment(service=str(record))
    with log.open("w") as output:
        process = spawn(command, {**os.environ, **env, **context}, output, orphaned=None)
    ProcessRecord.of(process.pid, address=address).write(record)
    return process


def running(workspace: Workspace, name: str) -> ProcessRecord | None:
    """The service of this name, where it runs."""
    found = ProcessRecord.read(record := _file(workspace, name))
    return found if found and found.lives and serves(found.pid, record) else None


def stop_service(workspace: Workspace, name: str) -> bool:
    """Stop a service and all that it started and left in its group; whether there was anything to stop."""
    record = _file(workspace, name)
    known = ProcessRecord.read(record)
    found = known is not None and any(serves(process.pid, record) for process in members(known.pid))
    if known is not None and found:
        stop_group(known.pid, PATIENCE_S.get(name, 20.0))
    record.unlink(missing_ok=True)
    return found


def _file(workspace: Workspace, name: str, kind: str = "json") -> Path:
    """Record (json) or log of a service."""
    return workspace.state.absolute() / f"{name}.{kind}"


def free_port(preferred: int) -> int:
    """`preferred` where it is free, else one that the system picks."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: Server, process: Process) -> None:
    """Return once it is this server that answers at its port, proxies left aside.

    Raises UserError where it ends or takes too long.
    """

    def ready() -> bool:
        try:
            with build_opener(ProxyHandler({})).open(f"{server.address}{server.health}", timeout=5):
                found = [connection for member in members(process.pid) for connection in member.net_connections("tcp")]
        except (OSError, HTTPException, psutil.Error):
            return False
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == server.port for c in found)

    _wait(f"{server.title}'s server", process, server.log, ready)


def _wait(title: str, process: Process, log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        _check(title, process, log)
        if time.monotonic() > deadline:
            raise UserError(f"{title} is not ready after {START_S:.0f} s; see {log}")
        time.sleep(0.2)


def _check(title: str, process: Process, log: Path) -> None:
    if (code := process.poll()) is not None:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{title} ended: {error_line(lines, code)} (see {log})")


def first_line(error: Exception) -> str:
    """The first line of a client's error, without passwords; its kind where it has none."""
    return redact((str(error).splitlines() or [type(error).__name__])[0])


def up(workspace: Workspace, echo: Log) -> None:
    """Start what does not run yet, register the deployments with a new worker, and print the addresses.

    A server that the environment names (MLFLOW_TRACKING_URI, PREFECT_API_URL) is used, not started. Raises UserError
    where one does not start; what did start stays.
    """
    cache_folder(workspace)  # where DVC's settings are wrong, no flow run can work
    with _alone(workspace, echo):
        processes = []
        for server in _servers_to_start(workspace, echo):
            stop_service(workspace, server.name)  # what a killed one left
            process = keep_running(workspace, server.name, server.command, server.env, server.address)
            processes.append((server, process))
        for server, process in processes:
            wait_until_ready(server, process)
            echo(f"{server.title}: {server.address}{server.page}")
        if (api := known_prefect(workspace)) is None:
            raise UserError(f"Prefect's server ended as soon as it had started; see {workspace.state}/{PREFECT}.log")
        worker = running(workspace, WORKER)
        if worker and worker.address == redact(api):
            echo("worker: already running")
        else:
            stop_service(workspace, WORKER)
            os.environ["PREFECT_API_URL"] = api  # before Prefect is imported
            from pipeline.services.worker import deploy

            deploy()
            command = [sys.executable, "-m", "pipeline.services.worker"]
            process = keep_running(workspace, WORKER, command, {"PYTHONUNBUFFERED": "1"}, redact(api))
            log = _file(workspace, WORKER, "log")
            _wait("the worker", process, log, lambda: "started!" in log.read_text(errors="replace"))
            echo("worker: waits for runs of the deployments nightly, on-demand, sweep and trial")
    echo(f"for prefect's own commands: export PREFECT_API_URL={redact(api)}")
    echo(f"logs in {workspace.state}/; vaeline down stops them")


def down(workspace: Workspace, echo: Log) -> None:
    """Stop what `vaeline up` started, the worker first, and wait for its end."""
    with _alone(workspace, echo):
        stopped = [name for name in (WORKER, PREFECT, MLFLOW) if stop_service(workspace, name)]
    echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _alone(workspace: Workspace, echo: Log) -> AbstractContextManager[int]:
    """One `up` or `down` at a time; another is waited for."""
    busy = "another `vaeline up` or `vaeline down` is at work here: waiting for its end"
    return locked(workspace.make_state() / "up.lock", lambda: echo(busy))


def serve(workspace: Workspace, echo: Log, port: int = 5000) -> None:
    """Start both web interfaces, print their addresses, and stop them when this is interrupted or one of them ends.

    A server that the environment names, or that runs already, is not started; MLflow's `port` is another where taken.
    Raises UserError, with the reason from its log, where one does not start or ends by itself.
    """
    with ExitStack() as stack:
        processes = [(s, stack.enter_context(started(s))) for s in _servers_to_start(workspace, echo, port)]
        for server, process in processes:
            wait_until_ready(server, process)
            echo(f"{server.title}: {server.address}{server.page} (Ctrl-C stops it)")
        while processes:
            for server, process in processes:
                _check(f"{server.title}'s server", process, server.log)
            time.sleep(0.5)


def _servers_to_start(workspace: Workspace, echo: Log, port: int = 5000) -> Iterator[Server]:
    """The servers that neither the environment names nor run already; prints the address of the others."""
    uri, api = tracking_uri(workspace), os.environ.get("PREFECT_API_URL", "")
    mlflow = "" if artifact_location(uri, workspace) else f"{redact(uri).rstrip('/')}{ML_PAGE} (MLFLOW_TRACKING_URI)"
    prefect = f"{redact(api).removesuffix('/api')} (PREFECT_API_URL)" if api else ""
    for named, preferred, make in ((mlflow, port, mlflow_server), (prefect, 4200 + (port == 4200), prefect_server)):
        server = make(workspace, free_port(preferred))
        if named:
            echo(f"{server.title}: {named}")
        elif service := running(workspace, server.name):
            echo(f"{server.title}: {service.address}{server.page} (already running)")
        else:
            if server.port != preferred:
                echo(f"{server.title}: port {preferred} is taken here, {server.port} instead")
            yield server
