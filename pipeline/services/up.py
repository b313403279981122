"""`vaeline up` and `vaeline down`: MLflow's server, Prefect's and a worker, left running and stopped again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.services import daemons
from pipeline.services.child_processes import Process
from pipeline.services.dvc_command import reason
from pipeline.services.servers import (
    HOST,
    LOOPBACK,
    MLFLOW,
    PREFECT,
    START_S,
    Server,
    free_port,
    mlflow_server,
    prefect_server,
    refuse_open_doors,
    wait_until_ready,
)
from vaeline.errors import UserError
from vaeline.io.locks import locked
from vaeline.io.workspace import current_workspace, make_state_folder, state_folder
from vaeline.tracking.connection import artifact_location, redact, tracking_uri

WORKER = "worker"
PATIENCE_S = {WORKER: 40.0, PREFECT: 20.0, MLFLOW: 20.0}  # a worker waits for its runs, which write checkpoints
Say = Callable[[str], None]


def up(say: Say, host: str = HOST) -> None:
    """Start what does not run yet, register the deployments with a new worker, and tell the addresses.

    A server that the environment names (MLFLOW_TRACKING_URI, PREFECT_API_URL) is used, not started. Raises UserError
    where a server would be open to other machines without a password, or does not start; what did start stays.
    """
    refuse_open_doors(host)
    with _alone():
        uri = tracking_uri(current_workspace())
        artifacts = artifact_location(uri, current_workspace())
        api = os.environ.get("PREFECT_API_URL")
        starting = []
        if artifacts is None:
            say(f"MLflow: {redact(uri)} (MLFLOW_TRACKING_URI)")
        else:
            starting += _start(say, MLFLOW, 5000, host, lambda port: mlflow_server(uri, artifacts, port, host))
        if api:
            say(f"Prefect: {redact(api).removesuffix('/api')} (PREFECT_API_URL)")
        else:
            starting += _start(say, PREFECT, 4200, host, lambda port: prefect_server(port, host))
        for server, process in starting:
            wait_until_ready(server, process)
            say(f"{server.name}: {server.address}")
        tracking, api = {} if artifacts is None else _through_mlflow(host), api or _address(PREFECT)
        _start_worker(say, api, tracking)
    if tracking:
        say(f"for a shell, with user and password: export MLFLOW_TRACKING_URI={tracking['MLFLOW_TRACKING_URI']}")
    say(f"for prefect's own commands: export PREFECT_API_URL={redact(api)}")
    say(f"logs in {state_folder()}/; vaeline down stops them")


def down(say: Say) -> None:
    """Stop what `vaeline up` started, the worker first, and wait for its end."""
    with _alone():
        stopped = [name for name in (WORKER, PREFECT, MLFLOW) if (d := daemons.find(name)) and d.end(PATIENCE_S[name])]
    say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _alone() -> AbstractContextManager[None]:
    return locked(make_state_folder() / "up.lock")


def _start(say: Say, daemon: str, port: int, host: str, make: Callable[[int], Server]) -> list[tuple[Server, Process]]:
    """The server, started, unless it runs: then only told."""
    known = daemons.find(daemon)
    if known and known.lives:
        say(f"{make(port).name}: {known.address}, already running")
        return []
    if known:
        known.end(PATIENCE_S[daemon])  # what a killed one left
    server = make(free_port(port, host))
    if server.port != port:
        say(f"{server.name}: port {port} is taken here, {server.port} instead")
    return [(server, daemons.start(daemon, server.command, server.env, server.address, cwd=state_folder()))]


def _through_mlflow(host: str) -> dict[str, str]:
    """A worker beside a server that other machines use too keeps to it, for its experiments' artifacts are there."""
    if host in LOOPBACK:
        return {}
    mlflow = daemons.running(MLFLOW)
    own = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]}
    return {**own, "MLFLOW_TRACKING_URI": mlflow.address if mlflow else tracking_uri(current_workspace())}


def _start_worker(say: Say, api: str, tracking: dict[str, str]) -> None:
    """Register the deployments and start a worker for them, unless one runs for this very server."""
    known = daemons.find(WORKER)
    if known and known.lives and known.address == redact(api):
        say("worker: already running")
        return
    if known:
        known.end(PATIENCE_S[WORKER])
    environment = {"PREFECT_API_URL": api, "PYTHONUNBUFFERED": "1", **tracking}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.services.worker", "deploy"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"deployments: {last.removeprefix('error: ')}")
    process = daemons.start(
        WORKER, [sys.executable, "-m", "pipeline.services.worker"], environment, redact(api), cwd=Path.cwd()
    )
    _wait_for_words(process, "started!")
    say("worker: waits for runs of the deployments nightly, on-demand, sweep and trial")


def _wait_for_words(process: Process, words: str) -> None:
    """Return once the worker has said so. Raises UserError where it ends first, or is silent."""
    log, deadline = daemons.log_of(WORKER), time.monotonic() + START_S
    while words not in (text := log.read_text(errors="replace")):
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            why = f"silent for {START_S:.0f} s" if code is None else reason(text.splitlines(), code)
            raise UserError(f"the worker did not start: {why} (see {log})")
        time.sleep(0.2)


def _address(daemon: str) -> str:
    found = daemons.running(daemon)
    if found is None:
        raise UserError(f"the server ended as soon as it had started; see {daemons.log_of(daemon)}")
    return f"{found.address}/api"
