"""The Prefect flow: one task a DVC stage, in the order of DVC's own graph.

Prefect says when, DVC says what: no stage logic and no caching here, and torch is never imported.

Stages run one after another, evaluate and sample too. Both would use every core or the one accelerator, so
that together they take as long as in turn, and twice the memory; and DVC's lock lets two `dvc repro` compute at
once but not check or commit. One after another keeps the log readable and the peak memory one stage's.
"""

import sys
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipeline import page, report
from pipeline.repro import (
    Outcome,
    Stage,
    StageError,
    always_stale,
    read_stages,
    reproduce,
    stale_stages,
    workspace_lock,
)
from pipeline.stages.entry import run_program
from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.workspace import PARAMS


@task(cache_policy=NO_CACHE, task_run_name="{name}")
def run_stage(name: str, stale: bool, force: bool) -> State[Outcome]:
    """One stage: its task state is named after the outcome, Ran, Restored (from DVC's run cache) or Cached.

    `stale` is False where DVC has already told that nothing changed: asking again would cost two seconds.
    """
    log = get_run_logger()
    outcome: Outcome = "cached"
    if stale:
        try:
            outcome = reproduce(name, log.info, {"VAELINE_FLOW_RUN_ID": str(runtime.flow_run.id)}, force)
        except StageError as error:
            return Failed(message=str(error))
    return Completed(name=outcome.capitalize(), message=f"stage '{name}': {outcome}", data=outcome)


@flow(name="vaeline")
def vaeline_flow() -> State[dict[str, Outcome]]:
    """Bring everything in dvc.yaml up to date; Failed, with nothing run after it, at the first stage that fails."""
    log = get_run_logger()
    try:
        with workspace_lock(log.warning):
            outcomes = _bring_up_to_date()
    except UserError as error:
        return Failed(message=str(error))
    log.info(", ".join(f"{name} {outcome}" for name, outcome in outcomes.items()))
    if page.is_stale():  # all was cached, and the page is not: it names runs, so DVC does not keep it
        page.publish(read_params(PARAMS))
    create_markdown_artifact(
        report.markdown(outcomes, page.where()), key="vaeline-report", description="Metrics and pictures"
    )
    return Completed(message="all stages are up to date", data=outcomes)


def _bring_up_to_date() -> dict[str, Outcome]:
    """What became of each stage. Raises UserError where DVC cannot be asked and StageError where a stage fails."""
    stages, forced = read_stages(), always_stale()
    stale = stale_stages() | forced
    states: dict[str, State[Any]] = {}
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        state: State[Any] = run_stage.with_options(description=stage.description)(
            stage.name,
            stage.name in stale or _fed_anew(stage, outcomes),
            stage.name in forced,
            wait_for=[states[name] for name in stage.upstream],
            return_state=True,
        )
        if not state.is_completed():
            waiting = ", ".join(s.name for s in stages[len(states) + 1 :])
            raise StageError(f"{state.message}{f' (not run: {waiting})' if waiting else ''}")
        states[stage.name], outcomes[stage.name] = state, state.result()
    return outcomes


def _fed_anew(stage: Stage, outcomes: dict[str, Outcome]) -> bool:
    """Whether something this stage reads was written in this run, so that DVC has to be asked again."""
    return any(outcomes[name] != "cached" for name in stage.upstream)


def main() -> None:
    """Run the flow, then tell where to look.

    Raises UserError with the words of the stage that failed, or where Prefect's server is away.
    """
    try:
        state: State[Any] = vaeline_flow(return_state=True)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error) and "Timed out while attempting" not in str(error):
            raise
        raise UserError(f"Prefect: {error}; start that server, or unset PREFECT_API_URL for a temporary one") from None
    if not state.is_completed():
        raise UserError(state.message or f"the flow ended {state.name}")
    # asking MLflow takes seconds: only for what is new
    version = report.registered_version() if state.result().get("register", "cached") != "cached" else None
    sys.stdout.write("\n" + report.summary(version))


if __name__ == "__main__":
    run_program(main)
