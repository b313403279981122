"""`vaeline run`: the flow once, in this process, with Prefect's server for the time of it where none is known."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from pipeline.flows.registered import next_steps, registered_version
from pipeline.report import summary
from pipeline.services import flow_run_processes
from pipeline.services.dvc_command import stages_to_run
from pipeline.services.servers import first_line, known_prefect, started, temporary_prefect_server, wait_until_ready
from pipeline.services.workspace_lock import workspace_lock
from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.tracking.connection import check_store

INTERRUPTED = "aborted by an interrupt signal"  # in Prefect's lines about a crash


def main(only: str = "", force: bool = False) -> None:
    """Run the flow where there is something to do, then print where to look.

    `only`: a stage, for that and those it needs; `force`: also what has not changed.
    Raises UserError with the error lines of the stage that failed, or where Prefect's server is away.
    """
    workspace = current_workspace()
    with workspace_lock(workspace, lambda line: print(line, file=sys.stderr)) as context:  # noqa: T201
        os.environ.update(context.environment())  # the flow finds the lock taken by this process
        if stages_to_run(workspace, only, force):
            check_store(workspace)
            _run_flow(workspace, only, force)
        else:
            print("all stages up to date")  # noqa: T201
    print("\n" + summary.summary(workspace, registered_version(workspace)) + next_steps(workspace), end="")  # noqa: T201


def _run_flow(workspace: Workspace, only: str, force: bool) -> None:
    with prefect_api(workspace):
        from httpx import HTTPError, HTTPStatusError
        from prefect import tags

        from pipeline.flows.vaeline import vaeline_flow

        for kind in ("flow", "task"):  # Ctrl-C is one line, this program's
            logging.getLogger(f"prefect.{kind}_runs").addFilter(lambda line: INTERRUPTED not in line.getMessage())
        try:
            with tags(read_params(workspace.params).register_.name):
                state = vaeline_flow(only=only, force=force, return_state=True)
        except (RuntimeError, HTTPError) as error:
            if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
                raise
            hint = "start that server, or unset PREFECT_API_URL for a temporary one"
            if isinstance(error, HTTPStatusError) and error.response.status_code == 401:
                hint = "set its password in PREFECT_API_AUTH_STRING, as user:password"
            raise UserError(f"Prefect: {first_line(error)}; {hint}") from None
        flow_run_processes.record_path(workspace, str(state.state_details.flow_run_id)).unlink(missing_ok=True)
    if not state.is_completed():
        raise UserError(state.message or f"the flow ended {state.name}")


@contextmanager
def prefect_api(workspace: Workspace) -> Iterator[None]:
    """PREFECT_API_URL for the block: the user's, that of `vaeline up`, or a temporary server's.

    The last dies with this process, however that ends, which the one that Prefect itself would start does not.
    Call it before Prefect is imported; that is done while the server starts.
    """
    if api := known_prefect(workspace):
        os.environ["PREFECT_API_URL"] = api
        yield
        return
    temporary = temporary_prefect_server(workspace)
    os.environ["PREFECT_API_URL"] = f"{temporary.address}/api"
    with started(temporary) as process:
        flow = import_module("pipeline.flows.vaeline")
        log = logging.getLogger("prefect.flow_runs")  # names a page that this server has not
        log.addFilter(lambda line: not line.getMessage().startswith("View at "))
        wait_until_ready(temporary, process)
        yield
        flow.send_remaining()
