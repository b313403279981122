"""`vaeline worker`: takes flow runs from Prefect's work pool, and goes on with those that a killed worker left.

A worker that starts looks at the notes of `pipeline.services.flow_run_processes`. A flow run whose process has ended
without a word is scheduled again: DVC then finds the stages that are done, and training its checkpoint.
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
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled
from prefect.workers.process import ProcessWorker

from pipeline.services import flow_run_processes
from pipeline.services.servers import told
from vaeline.command.program import run_program
from vaeline.errors import UserError
from vaeline.io.run_context import RunContext
from vaeline.tracking.connection import redact

POOL = "vaeline"
DEPLOYMENTS = Path("pipeline/flows/prefect.yaml")
# nobody watches a deployment's run: what may mend itself is tried again
RETRIES = {"PREFECT_TASKS_DEFAULT_RETRIES": "3", "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "10,60,300"}
MOST_ATTEMPTS = 5  # of one flow run; what kills its process each time will not end by itself

log = logging.getLogger(__name__)


def deploy() -> None:
    """Make the work pool where there is none, and bring the deployments to what pipeline/flows/prefect.yaml says.

    Raises UserError where Prefect refuses or is away.
    """
    _reach(_make_pool)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(DEPLOYMENTS), "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        raise UserError(f"{DEPLOYMENTS}: {lines[-1] if lines else f'prefect deploy: exit code {done.returncode}'}")


def work() -> None:
    """Settle what ended without a word, then become Prefect's worker. Raises UserError where Prefect is away."""
    _reach(_make_pool)
    _reach(settle)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    here = RunContext.read().environment(workspace=str(Path.cwd())) | {
        "PYTHONPATH": _module_path(),
        "TMPDIR": str(_own_folder()),
    }
    os.execve(sys.executable, command, RETRIES | os.environ | here)


def settle(client: SyncPrefectClient) -> None:
    """Give every flow run of this clone whose process has ended the state that is true."""
    for flow_run_id in flow_run_processes.ended():
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            flow_run_processes.forget(flow_run_id)
            continue
        state = _true_state(run)
        if state is not None:
            log.info("flow run %s: %s, now %s", run.name, run.state_name, state.name)
            client.set_flow_run_state(run.id, state, force=True)
        flow_run_processes.forget(flow_run_id)


def _true_state(run: FlowRun) -> State[None] | None:
    """What to make of a run without a process; None where its state says all."""
    if run.state is None or (run.state.is_final() and not run.state.is_crashed()):
        return None
    if run.state.is_cancelling():
        return Cancelled(message="its process has ended")
    if run.deployment_id is None or run.run_count >= MOST_ATTEMPTS:
        return None if run.state.is_crashed() else Crashed(message="its process has ended")
    return Scheduled(name="Resuming", message="its process had ended; it goes on from what is done")


def _make_pool(client: SyncPrefectClient) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return


def _reach(act: Callable[[SyncPrefectClient], None]) -> None:
    try:
        with get_client(sync_client=True) as client:
            act(client)
    except (HTTPError, RuntimeError) as error:
        raise UserError(f"Prefect at {redact(os.environ.get('PREFECT_API_URL', ''))}: {told(error)}") from None


def _own_folder() -> Path:
    """For temporary files: Prefect keeps some under a name of its own, which the machine's first user would own."""
    folder = Path(tempfile.gettempdir()) / f"vaeline-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.getuid():
        raise UserError(f"{folder}: must be a folder of this user's; else name another place for such in TMPDIR")
    return folder


def _module_path() -> str:
    """Where a flow run's process, which starts in another folder, finds this code."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(Path.cwd()), *(str(Path(path).resolve()) for path in paths if path)])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(deploy if sys.argv[1:] == ["deploy"] else work)
