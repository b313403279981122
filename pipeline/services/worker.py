"""`vaeline worker`: takes flow runs from Prefect's work pool, and goes on with those that a killed worker left.

A worker that starts looks at the flow-run process records. A flow run whose process has ended without setting its
state is scheduled again: DVC then finds the stages that are done, and training its checkpoint.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from pipeline.services import flow_run_processes
from pipeline.services.dvc_command import error_line
from pipeline.services.servers import first_line
from vaeline.command.program import run_program, use_code_of
from vaeline.errors import UserError
from vaeline.io.workspace import RunContext, Workspace, current_workspace

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
    with _client() as client:
        make_pool(client)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(DEPLOYMENTS), "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        raise UserError(f"{DEPLOYMENTS}: {error_line(lines, done.returncode)}")


def work(workspace: Workspace) -> NoReturn:
    """Settle the flow runs whose process has ended, then become Prefect's worker. Raises UserError where it is away."""
    with _client() as client:
        make_pool(client)
        settle(client, workspace)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    use_code_of(workspace.root.absolute())  # a flow run's process starts in another folder
    here = RunContext.read().environment(workspace=str(workspace.root.absolute()))
    # Prefect keeps files in a temporary folder under a name of its own, which the machine's first user would own
    temporary = workspace.make_state().absolute() / "tmp"
    temporary.mkdir(exist_ok=True)
    os.execve(sys.executable, command, RETRIES | os.environ | here | {"TMPDIR": str(temporary)})


def settle(client: SyncPrefectClient, workspace: Workspace) -> None:
    """Give every flow run of this clone whose process has ended the state that is true."""
    for flow_run_id in flow_run_processes.ended(workspace):
        with suppress(ObjectNotFound):
            run = client.read_flow_run(UUID(flow_run_id))
            state: State[None] | None = None
            if run.state is None or (run.state.is_final() and not run.state.is_crashed()):
                pass
            elif run.state.is_cancelling():
                state = Cancelled(message="its process has ended")
            elif run.deployment_id is not None and run.run_count < MAX_RUNS:
                state = Scheduled(name="Resuming", message="its process had ended; it goes on from what is done")
            elif not run.state.is_crashed():
                state = Crashed(message="its process has ended")
            if state is not None:
                log.info("flow run %s: %s, now %s", run.name, run.state_name, state.name)
                client.set_flow_run_state(run.id, state, force=True)
        flow_run_processes.record_path(workspace, flow_run_id).unlink(missing_ok=True)


def make_pool(client: SyncPrefectClient) -> None:
    """The work pool with TEMPLATE, whatever it had."""
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=TEMPLATE))
    except ObjectAlreadyExists:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=TEMPLATE))


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (HTTPError, RuntimeError) as error:
        raise UserError(f"Prefect at {os.environ.get('PREFECT_API_URL')}: {first_line(error)}") from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(lambda: work(current_workspace()))
