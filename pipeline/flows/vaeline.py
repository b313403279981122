"""The Prefect flow: one task a DVC stage, in the order of dvc.yaml.

Prefect decides when, DVC what: no stage logic and no caching here, and torch is never imported.

Stages run one after another: each uses every core or the one accelerator, and DVC's lock excludes two at once.
A failure of something outside (tracking, a remote, a lock) is retried by Prefect's settings
PREFECT_TASKS_DEFAULT_RETRIES and ..._RETRY_DELAY_SECONDS; everything else ends the run at once.
"""

import os
from collections.abc import Callable
from typing import Any

from prefect import Task, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TagsContext
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.states import Completed, Failed

from pipeline.flows.registered import pages, registered_version
from pipeline.report import summary
from pipeline.services import dvc_command, flow_run_processes
from pipeline.services.dvc_command import Outcome, needed_stages
from pipeline.services.workspace_lock import BusyError, WhenBusy, workspace_lock
from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace, current_workspace

TRANSIENT = "Away"  # the name of a failed state that may pass


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a failed task."""
    return state.name == TRANSIENT


@task(cache_policy=NO_CACHE, task_run_name="{name}", retry_condition_fn=is_transient)
def run_stage(name: str, stale: bool, force: bool, environment: dict[str, str]) -> State[Outcome]:
    """One stage: its task state is named after the outcome, Ran, Restored (from DVC's run cache) or Cached.

    `stale` is False where DVC has already found that nothing changed: asking again would cost two seconds.
    """
    workspace, log = current_workspace(), get_run_logger().info
    return _state(
        f"stage '{name}'",
        lambda: dvc_command.reproduce(workspace, name, log, environment, force) if stale else "cached",
    )


@task(cache_policy=NO_CACHE, task_run_name="experiment", retry_condition_fn=is_transient)
def run_experiment(overrides: list[str], only: str, force: bool) -> State[str]:
    """The name of a DVC experiment with these changes to params.yaml, run in a clone of the workspace."""
    from pipeline.sweep import run

    workspace, log = current_workspace(), get_run_logger().info
    return _state("experiment", lambda: run.run_experiment(workspace, overrides, "", only, force, log)[0])


def _state(what: str, work: Callable[[], str]) -> State[Any]:
    try:
        outcome = work()
    except UserError as error:
        return Failed(name=TRANSIENT if getattr(error, "transient", False) else "Failed", message=str(error))
    return Completed(name=outcome.capitalize(), message=f"{what}: {outcome}", data=outcome)


def run_name() -> str:
    """What a flow run computes: data set, latent dimensions, prior and changes, `fashion-mnist z20 mixture`."""
    parameters = runtime.flow_run.parameters
    changes = [*(parameters.get("overrides") or []), *filter(None, [parameters.get("only")])]
    try:
        params = read_params(current_workspace().params)
    except UserError:  # which the run itself reports
        return " ".join(["vaeline", *changes])
    model = params.model
    return " ".join([params.data.title, f"z{model.latent_dim}", model.prior.kind, *changes])


@flow(name="vaeline", flow_run_name=run_name)
def vaeline_flow(
    overrides: list[str] | None = None, when_busy: WhenBusy = "wait", only: str = "", force: bool = False
) -> State[Any]:
    """Bring everything in dvc.yaml up to date; Failed, with nothing run after it, at the first stage that fails.

    `only`: a stage, to run that and those it needs; `force`: also what has not changed.
    With overrides (`train.beta=4`) it runs a DVC experiment with these changes, and leaves the workspace as it is.
    Where another run is at work in this workspace it waits, or ends as Skipped.
    """
    flow_run, workspace = str(runtime.flow_run.id), current_workspace()
    flow_run_processes.record(workspace, flow_run)
    try:
        with workspace_lock(workspace, get_run_logger().warning, when_busy) as context:
            environment = context.environment(flow_run=flow_run)
            if not overrides:
                return _bring_up_to_date(workspace, environment, only, force)
            os.environ.update(environment)
            state: State[Any] = run_experiment(overrides, only, force, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
            name = state.result()
            return Completed(message=f"experiment {name} ({' '.join(overrides)}); dvc exp apply {name} brings it here")
    except BusyError as error:
        return Completed(name="Skipped", message=f"skipped: {error}")
    except UserError as error:
        return Failed(message=str(error))


def _bring_up_to_date(
    workspace: Workspace, environment: dict[str, str], only: str, force: bool
) -> State[dict[str, Outcome]]:
    """Every stage as a task; once one has run or was restored, DVC is asked about those after it."""
    wanted, described = needed_stages(workspace, only), dvc_command.read_stages(workspace)
    stages = {name: described[name].get("desc", "") for name in wanted}
    unwatched = dvc_command.always_stale(workspace)
    forced = set(stages) if force else unwatched
    stale = (dvc_command.stale_stages(workspace) | forced) & set(stages)
    outcomes: dict[str, Outcome] = {} if stale else dict.fromkeys(stages, "cached")
    for name, description in stages.items() if stale else ():
        asked = name in stale or any(outcome != "cached" for outcome in outcomes.values())
        task = run_stage.with_options(description=description)
        with TagsContext(current_tags=set()):  # of the flow run; for a task Prefect would ask for each tag's limit
            state: State[Any] = task(name, asked, name in forced, environment, return_state=True)
        if not state.is_completed():
            waiting = ", ".join([*stages][len(outcomes) + 1 :])
            return Failed(message=f"{state.message}{f' (not run: {waiting})' if waiting else ''}")
        outcomes[name] = state.result()
    get_run_logger().info(", ".join(f"{name} {outcome}" for name, outcome in outcomes.items()))
    if not force and all(outcome == "cached" or name in unwatched for name, outcome in outcomes.items()):
        decision, found = summary.registration(workspace), registered_version(workspace)
        current = f"{decision['name']} version {found} ({decision['decision']})" if decision else "nothing registered"
        return Completed(name="Unchanged", message=f"unchanged: {current}", data=outcomes)
    if outcomes.get("register", "cached") != "cached":
        registered_version(workspace, again=True)  # now, not in a run with nothing to do
    decision, links = summary.registration(workspace), pages(workspace)
    if outcomes.get("register") == "ran" and decision["decision"] == "promoted":
        resource = {"prefect.resource.id": f"vaeline.model.{decision['name']}"}
        emit_event("vaeline.promoted", resource, payload={"reasons": decision["reasons"], "pages": links})
    linked = ", ".join(f"[{title}]({address})" for title, address in links.items())
    text = f"In MLflow: {linked}\n\n{summary.markdown(workspace, outcomes)}"
    create_markdown_artifact(text, key="vaeline-report", description="Metrics and pictures")
    return Completed(message="all stages are up to date", data=outcomes)


def send_remaining() -> None:
    """Have Prefect's threads send their last log lines and events while there is a server to take them."""
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)
