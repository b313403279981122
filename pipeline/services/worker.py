"""`vaeline worker`: takes flow runs from Prefect's work pool, and goes on with those that a killed worker left.

A worker that starts looks at the flow-run process records. A flow run whose process has ended without setting its
state is scheduled again: DVC then finds the stages that are done, and training its checkpoint.
"""

import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from pipeline.services import flow_run_processes
from pipeline.services.servers import first_line
from vaeline.command.program import run_program, use_code_of
from vaeline.errors import UserError
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.tracking.connection import redact

POOL = "vaeline"
# What a flow run starts. Nothing is taken from its job_variables, which come with the request for the flow run; there
# is no "env", into which Prefect would merge theirs.
JOB = {"command": "python -m pipeline.services.flow_run_processes", "stream_output": True}
TEMPLATE = {"job_configuration": JOB, "variables": {"type": "object", "properties": {}}}
DEPLOYMENTS = Path("pipeline/flows/prefect.yaml")
# a deployment's run is unattended: a failure that may pass is retried
RETRIES = {"PREFECT_TASKS_DEFAULT_RETRIES": "3", "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "10,60,300"}
MAX_RUNS = 5  # of one flow run; what kills its process each time will not end by itself

log = logging.getLogger(__name__)


def deploy() -> None:
    """Make or update the work pool, and bring the deployments up to date with pipeline/flows/prefect.yaml.

    Raises UserError where Prefect refuses or is away.
    """
    _with_client(_make_pool)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(DEPLOYMENTS), "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        raise UserError(f"{DEPLOYMENTS}: {lines[-1] if lines else f'prefect deploy: exit code {done.returncode}'}")


def work(workspace: Workspace) -> NoReturn:
    """Settle the flow runs whose process has ended, then become Prefect's worker. Raises UserError where it is away."""
    _with_client(_make_pool)
    _with_client(lambda client: settle(client, workspace))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    use_code_of(workspace.root.absolute())  # a flow run's process starts in another folder
    here = RunContext.read().environment(workspace=str(workspace.root.absolute()))
    os.execve(sys.executable, command, RETRIES | os.environ | here | {"TMPDIR": str(_own_folder())})


def settle(client: SyncPrefectClient, workspace: Workspace) -> None:
    """Give every flow run of this clone whose process has ended the state that is true."""
    for flow_run_id in flow_run_processes.ended(workspace):
        with suppress(ObjectNotFound):
            run = client.read_flow_run(UUID(flow_run_id))
            state = _true_state(run)
            if state is not None:
                log.info("flow run %s: %s, now %s", run.name, run.state_name, state.name)
                client.set_flow_run_state(run.id, state, force=True)
        flow_run_processes.remove(workspace, flow_run_id)


def _true_state(run: FlowRun) -> State[None] | None:
    """The state of a run without a process; None where it has the right one."""
    if run.state is None or (run.state.is_final() and not run.state.is_crashed()):
        return None
    if run.state.is_cancelling():
        return Cancelled(message="its process has ended")
    if run.deployment_id is None or run.run_count >= MAX_RUNS:
        return None if run.state.is_crashed() else Crashed(message="its process has ended")
    return Scheduled(name="Resuming", message="its process had ended; it goes on from what is done")


def _make_pool(client: SyncPrefectClient) -> None:
    """The work pool with TEMPLATE, whatever it had."""
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=TEMPLATE))
    except ObjectAlreadyExists:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=TEMPLATE))


def _with_client(act: Callable[[SyncPrefectClient], None]) -> None:
    try:
        with get_client(sync_client=True) as client:
            act(client)
    except (HTTPError, RuntimeError) as error:
        raise UserError(f"Prefect at {redact(os.environ.get('PREFECT_API_URL', ''))}: {first_line(error)}") from None


def _own_folder() -> Path:
    """For temporary files: Prefect keeps some under a name of its own, which the machine's first user would own."""
    folder = Path(tempfile.gettempdir()) / f"vaeline-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.getuid():
        raise UserError(f"{folder}: must be a folder of this user's; else name another place for such in TMPDIR")
    return folder


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(lambda: work(current_workspace()))
