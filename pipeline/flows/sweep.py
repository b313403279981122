"""A sweep by several workers: the flow `sweep` has each trial run by the deployment `trial`.

The workers of the pool take the trials, each in its own clone; the clones must be at the same commit with the same
params. Results travel through optuna's storage: a file that workers on one machine share, or the database that
VAELINE_SWEEP_STORAGE names. A DVC experiment stays in the worker's clone, unless there is a DVC remote to push to.
"""

import time
from contextlib import suppress
from typing import Annotated

from httpx import HTTPError
from optuna.trial import FrozenTrial
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from pipeline.report.summary import plain
from pipeline.services.dvc_command import run_dvc
from pipeline.services.environment import enter_workspace, prepare_environment
from pipeline.services.servers import first_line
from pipeline.sweep.process import ExperimentProcess, Result, one_slot
from pipeline.sweep.reports import report_to_mlflow, status, to_markdown, write_reports
from pipeline.sweep.run import run_trials
from pipeline.sweep.study import Request, Search, Sweep, exclusive, load_sweep, plan_sweep
from vaeline.errors import UserError

DEPLOYMENT = "trial/trial"
ASK_S = 2.0  # between two questions to the server about one trial
COMES_BACK_S = 300.0  # for a stopped worker to start again and go on with its trial
PAUSES_S = (0.0, 2.0, 10.0, 30.0, 60.0)  # before asking a server that is away to take a trial


@flow(name="trial")
def trial_flow(sweep: str, storage: str, number: int) -> State[None]:
    """One trial of a sweep in this worker's clone; Failed where it fails, or where the clone is not at the baseline."""
    workspace = prepare_environment(enter_workspace())
    try:
        here = load_sweep(workspace, sweep, storage)
        if number not in range(len(here.study.trials)):
            raise UserError(f"number: found {number}, allowed: that of a trial of sweep {sweep}")
        attributes = here.study.trials[number].user_attrs
        changes = here.changes(attributes["values"])
        with one_slot() as environment:
            result = ExperimentProcess(here.origin, attributes["name"], changes, environment, ("evaluate",)).wait()
    except UserError as error:
        return Failed(message=str(error))
    ended = here.finish(number, result)
    if ended.value is None:
        return Failed(message=status(ended).removeprefix("failed: "))
    if run_dvc(workspace, "dvc", "config", "core.remote").stdout.strip():
        done = run_dvc(workspace, "dvc", "exp", "push", "origin", attributes["name"])  # with its models and data
        get_run_logger().info("dvc exp push: %s", (done.stderr if done.returncode else done.stdout).strip())
    return Completed(message=f"{here.metric} {ended.value}")


@flow(name="sweep", flow_run_name=lambda: " ".join(["sweep", *runtime.flow_run.parameters["assignments"]]))
def sweep_flow(
    assignments: list[str],
    jobs: Annotated[int, Field(ge=1)] = 2,
    search: Search = "grid",
    trials: Annotated[int, Field(ge=0)] = 0,
    seed: Annotated[int, Field(ge=0)] = 1,
    metric: str = "test.elbo",
    name: str = "",
) -> State[None]:
    """Have every trial run by the deployment, `jobs` at once, and rank them; Failed where one failed, after all.

    Nothing is registered: no machine has all the models. Run again, it does only what is missing.
    """
    log = get_run_logger()
    workspace = prepare_environment(enter_workspace())
    try:
        sweep = plan_sweep(workspace, Request(assignments, search, trials, seed, metric), name)
        with exclusive(sweep):
            away = report_to_mlflow(sweep)
            run_trials(sweep, lambda trial, _: TrialFlowRun(sweep, trial), jobs, log.info)
            folder = write_reports(sweep)
            if away := report_to_mlflow(sweep, folder) or away:
                log.warning("not in MLflow: %s", away)
    except UserError as error:
        return Failed(message=str(error))
    create_markdown_artifact(plain(to_markdown(sweep)), key="sweep", description=f"{sweep.name}: {folder}")
    if failed := [trial.user_attrs["name"] for trial in sweep.trials() if trial.value is None]:
        return Failed(message=f"failed: {', '.join(failed)}; the others are ranked in {folder}")
    return Completed(message=f"{sweep.total} trials ranked in {folder}")


class TrialFlowRun:
    """A trial at work as a flow run, somewhere."""

    def __init__(self, sweep: Sweep, trial: FrozenTrial) -> None:
        """Start it. Raises UserError where Prefect's server does not take it."""
        self._asked, self._crashed = 0.0, 0.0  # when the server was last asked; since when its process is gone
        parameters = {"sweep": sweep.name, "storage": sweep.storage, "number": trial.number}
        for pause in PAUSES_S:
            time.sleep(pause)
            try:
                run = run_deployment(
                    DEPLOYMENT, parameters=parameters, flow_run_name=trial.user_attrs["name"], timeout=0
                )
            except ObjectNotFound:
                raise UserError(f"Prefect: there is no deployment {DEPLOYMENT}: vaeline deploy makes it") from None
            except HTTPError as error:
                reason = first_line(error)
            else:
                assert isinstance(run, FlowRun)  # in asynchronous code it would be a coroutine
                self._flow_run = run.id
                return
        raise UserError(f"Prefect: {DEPLOYMENT} cannot be run: {reason}")

    def poll(self) -> Result | None:
        """None until the flow run has ended; then why it failed, in case that it stored no result itself."""
        now = time.monotonic()
        if now - self._asked < ASK_S:
            return None
        self._asked = now
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._flow_run).state
        except ObjectNotFound:
            return {"reason": "its flow run was deleted"}
        except HTTPError:  # the server is busy or away: asked again
            return None
        # of a crashed one the worker may start again and go on with it
        self._crashed = (self._crashed or now) if state and state.is_crashed() else 0.0
        if not state or not state.is_final() or (self._crashed and now - self._crashed < COMES_BACK_S):
            return None
        return {"reason": state.message or f"the flow run ended {state.name}"}

    def stop(self) -> None:
        """Cancel the flow run, if the server is there."""
        with suppress(HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
            client.set_flow_run_state(self._flow_run, Cancelling())
