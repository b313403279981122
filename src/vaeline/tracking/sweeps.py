"""A sweep in MLflow: one parent run over the trials' runs, with the ranking and the pictures.

Both functions may be repeated: the parent is found again by its tag, what it holds is written over.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import all_pages, connect, experiment_id, one_line_errors

LONGEST = 6000  # characters of a parameter, MLflow's limit
PARENT, SWEEP, ROLE, DIGEST = "mlflow.parentRunId", "vaeline.sweep", "vaeline.sweep_role", "vaeline.model_digest"


def open_parent(workspace: Workspace, experiment: str, name: str, params: Mapping[str, str]) -> str:
    """The id of the sweep's parent run, found or made. Raises UserError where the store is away."""
    client = connect(workspace)
    with one_line_errors():
        number = experiment_id(client, experiment, workspace)
        wanted = f"tags.`{SWEEP}` = '{name}' and tags.`{ROLE}` = 'parent'"
        if found := client.search_runs([number], wanted, max_results=1):
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {SWEEP: name, ROLE: "parent", "mlflow.source.name": "vaeline sweep", "mlflow.source.type": "LOCAL"}
        run_id = str(client.create_run(number, tags=tags, run_name=name).info.run_id)
        for key, value in params.items():
            client.log_param(run_id, key, value[:LONGEST])
        return run_id


def close_parent(
    workspace: Workspace,
    run_id: str,
    status: str,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    folder: Path,
    digests: Iterable[str],
) -> None:
    """Put the outcome into the parent run, and make its children the runs that trained the models `digests`.

    A run that has another parent keeps it. Raises UserError where the store is away.
    """
    client = connect(workspace)
    with one_line_errors():
        for key, value in metrics.items():
            client.log_metric(run_id, key, value, int(time.time() * 1000), 0)
        for key, text in tags.items():
            client.set_tag(run_id, key, text)
        client.log_artifacts(run_id, str(folder))
        experiments = [found.experiment_id for found in all_pages(client.search_experiments)]
        for digest in set(filter(None, digests)):
            for run in client.search_runs(experiments, f"tags.`{DIGEST}` = '{digest}'", max_results=10):
                if not run.data.tags.keys() & {PARENT, ROLE}:  # made while the store was away, or before this sweep
                    client.set_tag(run.info.run_id, PARENT, run_id)
        client.set_terminated(run_id, status)
