"""A sweep by several workers: the flow `sweep` has each trial run by the deployment `trial`.

Whatever workers serve the work pool take the trials, each in the clone that it was started for; the clones must be at
the same commit with the same params. Results travel through optuna's storage: by default a file, which workers on one
machine share; for several machines VAELINE_SWEEP_STORAGE names a database. All need the same MLflow server. The DVC
experiment stays in the clone of the worker, unless there is a DVC remote to push to.
"""

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal
from uuid import UUID

from httpx import HTTPError
from optuna.trial import FrozenTrial
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from pipeline.services.environment import enter_workspace, prepare_environment
from pipeline.services.servers import first_line
from pipeline.sweep.command import requested_sweep
from pipeline.sweep.devices import one_slot
from pipeline.sweep.ranking import rows, status, to_markdown
from pipeline.sweep.reports import begin_in_mlflow, end_in_mlflow, write_reports
from pipeline.sweep.run import run_trials
from pipeline.sweep.study import Result, Sweep, exclusive, load_sweep
from pipeline.sweep.trial import TrialProcess
from vaeline.errors import UserError

DEPLOYMENT = "trial/trial"
ASK_S = 2.0  # between two questions to the server about one trial
COMES_BACK_S = 300.0  # for a stopped worker to start again and go on with its trial
PAUSES_S = (2.0, 10.0, 30.0, 60.0)  # before asking a server that is away to take a trial


@flow(name="trial")
def trial_flow(sweep: str, storage: str, number: int) -> State[None]:
    """One trial of a sweep in this worker's clone; Failed where it fails, or where the clone is not at the baseline."""
    workspace = enter_workspace()
    prepare_environment()
    try:
        here = load_sweep(workspace, sweep, storage)
        attributes = here.study.trials[number].user_attrs
        with one_slot() as environment:
            result = TrialProcess(here, attributes["name"], attributes["values"], environment, ("evaluate",)).wait()
    except UserError as error:
        return Failed(message=str(error))
    ended = here.finish(number, result)
    if ended.value is None:
        return Failed(message=status(ended).removeprefix("failed: "))
    if pushed := _push(attributes["name"]):
        get_run_logger().info(pushed)
    return Completed(message=f"{here.request.metric} {ended.value}")


def _push(name: str) -> str:
    """Push the experiment, with its models and data, where a DVC remote is configured; returns what came of it."""
    if not subprocess.run(["dvc", "config", "core.remote"], capture_output=True, text=True, check=False).stdout.strip():
        return ""
    done = subprocess.run(["dvc", "exp", "push", "origin", name], capture_output=True, text=True, check=False)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return f"dvc exp push: {lines[-1] if lines else 'done'}"


@flow(name="sweep")
def sweep_flow(
    assignments: list[str],
    jobs: Annotated[int, Field(ge=1)] = 2,
    search: Literal["grid", "random", "bayesian"] = "grid",
    trials: Annotated[int, Field(ge=0)] = 0,
    seed: Annotated[int, Field(ge=0)] = 1,
    metric: str = "test.elbo",
    name: str = "",
) -> State[None]:
    """Have every trial run by the deployment, `jobs` at once, and rank them; Failed where one failed, after all.

    Nothing is registered: no machine has all the models. Run again, it does only what is missing.
    """
    log = get_run_logger()
    workspace = enter_workspace()
    prepare_environment()
    try:
        sweep = requested_sweep(workspace, assignments, search, trials, seed, metric, name)
        with exclusive(sweep):
            sweep.begin()
            _warn(begin_in_mlflow(sweep))
            run_trials(sweep, lambda trial, _: _submit(sweep, trial), jobs, log.info)
            folder = write_reports(sweep)
            _warn(end_in_mlflow(sweep))
    except UserError as error:
        return Failed(message=str(error))
    create_markdown_artifact(to_markdown(*rows(sweep)), key="sweep", description=f"{sweep.name}: {folder}")
    failed = [trial.user_attrs["name"] for trial in sweep.trials() if trial.value is None]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}; the others are ranked in {folder}")
    return Completed(message=f"{sweep.total} trials ranked in {folder}")


def _warn(away: str) -> None:
    if away:
        get_run_logger().warning("the sweep goes on without MLflow: %s", away)


@dataclass
class TrialFlowRun:
    """A trial at work as a flow run, somewhere."""

    name: str
    flow_run: UUID
    asked: float = 0.0
    state: str = ""
    crashed: float | None = None  # since when its process is gone

    def poll(self) -> Result | None:
        """None until the flow run has ended; then why it failed, in case that it stored no result itself."""
        if time.monotonic() - self.asked < ASK_S:
            return None
        self.asked = time.monotonic()
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(self.flow_run)
        except ObjectNotFound:
            return {"reason": "its flow run was deleted"}
        except HTTPError:  # the server is busy or away: asked again
            return None
        self.state = run.state_name or ""
        if run.state is None or not run.state.is_final():
            self.crashed = None
            return None
        if run.state.is_crashed():  # its worker may start again and go on with it
            self.crashed = self.crashed or time.monotonic()
            if time.monotonic() - self.crashed < COMES_BACK_S:
                return None
        return {"reason": run.state.message or f"the flow run ended {self.state}"}

    def stop(self) -> None:
        """Cancel the flow run, if the server is there."""
        with suppress(HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
            client.set_flow_run_state(self.flow_run, Cancelling())

    def last_line(self) -> str:
        """The flow run's state."""
        return self.state


def _submit(sweep: Sweep, trial: FrozenTrial) -> TrialFlowRun:
    name = trial.user_attrs["name"]
    parameters = {"sweep": sweep.name, "storage": sweep.storage, "number": trial.number}
    for pause in (*PAUSES_S, None):
        try:
            run = run_deployment(DEPLOYMENT, parameters=parameters, flow_run_name=name, timeout=0)
        except (HTTPError, ObjectNotFound) as error:
            if pause is None or isinstance(error, ObjectNotFound):
                raise UserError(f"Prefect: {DEPLOYMENT} cannot be run: {first_line(error)}") from None
            time.sleep(pause)
        else:
            assert isinstance(run, FlowRun)  # in asynchronous code it would be a coroutine
            return TrialFlowRun(name, run.id)
    raise AssertionError
