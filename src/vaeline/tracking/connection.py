"""MLflow connection: tracking URI, client, experiment."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import TransientError, UserError, redact
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}  # MLflow's own codes
ENVIRONMENT = {  # read by MLflow when it is imported; a user's own settings win
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # "View run ..." with the password of the address
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, else sqlite in `.vaeline/`; relative sqlite paths count from the repository's root.

    DVC runs experiments in temporary copies, which share the repository's store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{workspace.state / 'mlflow.db'}"
    here = workspace.repository.absolute()
    return f"{SQLITE}{here / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def artifact_location(uri: str, workspace: Workspace) -> str | None:
    """The folder for artifacts of new experiments, beside the database; None where a server decides."""
    if uri.startswith(("http://", "https://")):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else workspace.state.absolute()
    return (folder / "artifacts").as_uri()


def connect(workspace: Workspace) -> "MlflowClient":
    """A client of the tracking store, reached and its schema in place. Raises UserError where it is away."""
    uri = tracking_uri(workspace)
    os.environ.update(ENVIRONMENT | os.environ)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised below
    mlflow.set_tracking_uri(uri)
    with ExitStack() as stack:
        stack.enter_context(one_line_errors())
        if uri.startswith(SQLITE):  # the first request creates the schema, and many processes may start at once
            database = Path(uri.removeprefix(SQLITE))
            database.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(database.with_name(f"{database.name}.lock")))
        client = mlflow.MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of MLflow and the layers below it into a UserError; TransientError where the store is away."""
    from mlflow import get_tracking_uri
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = " ".join(redact(str(error)).split()).rpartition("Caused by ")[2].partition(" (Background on this")[0]
        final = "disk is full" in reason or (isinstance(error, MlflowException) and error.error_code not in AWAY)
        kind = UserError if final else TransientError
        store = f"MLFLOW_TRACKING_URI: the tracking store {get_tracking_uri()}"
        raise kind(f"{store} cannot be used: {reason[:300]}") from None


def experiment_id(client: "MlflowClient", name: str, workspace: Workspace) -> str:
    """The experiment of that name: created, or found and restored where it was deleted."""
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location(client.tracking_uri, workspace)))
        except MlflowException:  # another process may have been faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
