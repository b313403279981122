"""Where MLflow keeps what it is told, and how to reach it."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import TransientError, UserError
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
OURS = "VAELINE_MLFLOW_LIMITS"  # which of MLflow's settings are not the user's
AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}  # MLflow's own codes


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, else sqlite in `.vaeline/` at the repository's root.

    A relative sqlite path counts from that root too, for DVC runs experiments in temporary copies.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{workspace.state / 'mlflow.db'}"
    if not uri.startswith(SQLITE):
        return uri
    return f"{SQLITE}{workspace.repository.absolute() / uri.removeprefix(SQLITE)}"


def artifact_location(uri: str, workspace: Workspace) -> str | None:
    """The folder for artifacts of new experiments: beside the database; None where a server decides."""
    if uri.startswith(("http://", "https://")):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else workspace.state.absolute()
    return (folder / "artifacts").as_uri()


def redact(text: str) -> str:
    """Take user names and passwords out of addresses."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def set_environment(timeout_s: int, retries: int) -> None:
    """Set what MLflow reads from its environment: no telemetry, little talk, and servers that are away fail fast.

    The timeouts hold for one request; a user's own settings win, those of a parent process do not. Call before
    importing mlflow.
    """
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    ours = {*os.environ.get(OURS, "").split()} | {name for name in limits if name not in os.environ}
    os.environ |= {name: value for name, value in limits.items() if name in ours} | {OURS: " ".join(sorted(ours))}
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def connect(workspace: Workspace, timeout_s: int = 20, retries: int = 1) -> "MlflowClient":
    """A client of the tracking store, reached and its schema in place. Raises UserError where it is away."""
    uri = tracking_uri(workspace)
    set_environment(timeout_s, retries)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; it is told in one line
    mlflow.set_tracking_uri(uri)
    with one_line_errors():
        ensure_store(uri)
        return mlflow.MlflowClient(uri)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what MLflow and the layers below it raise into a UserError; TransientError where the store is away."""
    from mlflow import get_tracking_uri
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = " ".join(redact(str(error)).split()).rpartition("Caused by ")[2].partition(" (Background on this")[0]
        store = redact(get_tracking_uri())
        final = "disk is full" in reason or (isinstance(error, MlflowException) and error.error_code not in AWAY)
        kind = UserError if final else TransientError
        raise kind(f"MLFLOW_TRACKING_URI: the tracking store {store} cannot be used: {reason[:300]}") from None


def ensure_store(uri: str) -> None:
    """Reach the store; a new sqlite file gets its schema, under a lock: many processes may start at once."""
    import mlflow

    if not uri.startswith(SQLITE):
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
        return
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f"{database.name}.lock")):
        mlflow.MlflowClient(uri).search_experiments(max_results=1)


def experiment_id(client: "MlflowClient", name: str, workspace: Workspace) -> str:
    """The experiment of that name: found, brought back from the bin, or made."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location(client.tracking_uri, workspace)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
