"""A sweep over several machines: the flow `sweep` has each trial run by the deployment `trial`.

Whatever workers serve the work pool take the trials, each in the clone that it was started for; the clones must be at
the same commit with the same params. Scores come back through Prefect, runs through MLflow, so that all machines need
the same tracking server; the DVC experiment stays in the clone of the worker, unless there is a DVC remote to push to.
"""

import json
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from pipeline.services.environment import enter_workspace, prepare_environment
from pipeline.services.servers import first_line
from pipeline.sweep.command import Asked, known_or_new, planned
from pipeline.sweep.devices import one_slot
from pipeline.sweep.progress import plain
from pipeline.sweep.publish import begin_in_mlflow, end_in_mlflow, write_reports
from pipeline.sweep.ranking import rows, to_markdown
from pipeline.sweep.run import finish, only_one, run_trials, start_here
from pipeline.sweep.state import Request, Sweep, Trial
from pipeline.sweep.trial import read_baseline
from vaeline.errors import UserError
from vaeline.io.digests import value_digest

RESULT = "trial"  # the key of the artifact that holds a trial's outcome
ASK_S = 2.0  # between two questions to the server about one trial
COMES_BACK_S = 300.0  # for a stopped worker to start again and go on with its trial
PAUSES_S = (2.0, 10.0, 30.0, 60.0)  # before asking a server that is away to take a trial


@flow(name="trial", flow_run_name="{trial[name]}")
def trial_flow(
    sweep: str, request: dict[str, Any], trial: dict[str, Any], baseline: str, parent: str = ""
) -> State[None]:
    """One trial of a sweep in this worker's clone; Failed where it fails, or where the clone is not at the baseline."""
    log = get_run_logger()
    enter_workspace()
    prepare_environment()
    here = read_baseline()
    if value_digest(here.identity) != baseline:
        return Failed(message=f"this worker's clone, at {here.commit[:8]}, has another commit, params or changes")
    this = Trial(**trial)
    local = Sweep(sweep, Request(**request), here, [this], parent_run_id=parent)
    with one_slot() as place:
        ended = finish(start_here(local, [place], ("evaluate",))(this, 0))
    create_table_artifact([asdict(ended) | {"values": json.dumps(ended.values)}], key=RESULT, description=ended.name)
    if ended.status == "failed":
        return Failed(message=ended.reason)
    if pushed := _push(ended.name):
        log.info(pushed)
    return Completed(message=f"{local.request.metric} {local.score(ended)}")


def _push(name: str) -> str:
    """Push the experiment, with its models and data, where a DVC remote is configured; what came of it."""
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
    maximise: bool | None = None,
    name: str = "",
    deployment: str = "trial/trial",
) -> State[None]:
    """Have every trial run by `deployment`, `jobs` at once, and rank them; Failed where one failed, after all have run.

    Nothing is registered: no machine has all the models. Run again, it does only what is missing.
    """
    log = get_run_logger()
    enter_workspace()
    prepare_environment()
    try:
        wanted = planned(Asked(assignments, search, trials, seed, metric, maximise, name, ""))
        with only_one(wanted.name):
            sweep = known_or_new(wanted)
            _warn(begin_in_mlflow(sweep))
            run_trials(sweep, lambda trial, place: _submit(sweep, trial, deployment), jobs, plain(sweep, log.info))
            folder = write_reports(sweep)
            _warn(end_in_mlflow(sweep))
    except UserError as error:
        return Failed(message=str(error))
    create_markdown_artifact(to_markdown(*rows(sweep)), key="sweep", description=f"{sweep.name}: {folder}")
    failed = [trial.name for trial in sweep.trials if trial.status == "failed"]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}; the others are ranked in {folder}")
    return Completed(message=f"{sweep.total} trials ranked in {folder}")


def _warn(away: str) -> None:
    if away:
        get_run_logger().warning("the sweep goes on without MLflow: %s", away)


@dataclass
class Remote:
    """A trial at work as a flow run, somewhere."""

    trial: Trial
    flow_run: UUID
    asked: float = 0.0
    state: str = ""
    crashed: float | None = None  # since when its process is gone

    def poll(self) -> Trial | None:
        """None until the flow run has ended; then its outcome."""
        if time.monotonic() - self.asked < ASK_S:
            return None
        self.asked = time.monotonic()
        try:
            return self._outcome()
        except ObjectNotFound:
            return replace(self.trial, status="failed", reason="its flow run was deleted")
        except HTTPError:  # the server is busy or away: asked again
            return None

    def _outcome(self) -> Trial | None:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(self.flow_run)
            self.state = run.state_name or ""
            if run.state is None or not run.state.is_final():
                self.crashed = None
                return None
            if run.state.is_crashed() and not self._given_up():
                return None
            wanted = ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self.flow_run]), key=ArtifactFilterKey(any_=[RESULT])
            )
            found = client.read_artifacts(artifact_filter=wanted)
        if not found:
            return replace(self.trial, status="failed", reason=run.state.message or f"the flow run ended {self.state}")
        (content,) = json.loads(str(found[0].data))
        return Trial(**(content | {"values": self.trial.values}))

    def _given_up(self) -> bool:
        """Whether a crashed flow run has had its time to be gone on with by its worker."""
        self.crashed = time.monotonic() if self.crashed is None else self.crashed
        return time.monotonic() - self.crashed > COMES_BACK_S

    def stop(self) -> None:
        """Cancel the flow run, if there is somebody to tell."""
        with suppress(HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
            client.set_flow_run_state(self.flow_run, Cancelling())

    def last_line(self) -> str:
        """The flow run's state."""
        return self.state


def _submit(sweep: Sweep, trial: Trial, deployment: str) -> Remote:
    parameters = {
        "sweep": sweep.name,
        "request": asdict(sweep.request),
        "trial": asdict(trial),
        "baseline": value_digest(sweep.baseline.identity),
        "parent": sweep.parent_run_id,
    }
    pauses = iter(PAUSES_S)
    while True:
        try:
            run = run_deployment(deployment, parameters=parameters, flow_run_name=trial.name, timeout=0)
        except (HTTPError, ObjectNotFound) as error:
            pause = next(pauses, None) if isinstance(error, HTTPError) else None
            if pause is None:
                raise UserError(f"Prefect: {deployment} cannot be run: {first_line(error)}") from None
            time.sleep(pause)
        else:
            assert isinstance(run, FlowRun)  # in asynchronous code it would be a coroutine
            return Remote(trial, run.id)
