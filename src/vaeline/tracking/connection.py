"""MLflow connection: tracking URI, client, experiment and how its pages show it."""

import errno
import json
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import uuid4

from vaeline.errors import TransientError, UserError, redact
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace
from vaeline.tracking.relocation import lock_of, relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE, SQLITE = "MLFLOW_TRACKING_URI", "sqlite:///"
SERVERS = ("http://", "https://")
FORMS = (
    "allowed: http(s)://HOST, sqlite:///FILE, postgresql://..., mysql://..., mssql://..., or unset: a file in .vaeline"
)
AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}  # MLflow's own codes
LASTING = re.compile("disk is full|database schema")  # under the same codes
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
VIEW = "vaeline"  # name of the saved view
ML_PAGES = "workflowType=machine_learning"  # in an address; without it MLflow opens its GenAI pages
COLUMNS = ("elbo", "nll", "bits_per_dimension_nll", "psnr")  # of the test split
SECTION = {"uuid": "bound", "name": "ELBO = reconstruction - KL", "display": True, "isReordered": True}


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, else sqlite in `.vaeline/`; relative sqlite paths count from the repository's root.

    DVC runs experiments in temporary copies, which share the repository's store.
    """
    uri = os.environ.get(VARIABLE) or f"{SQLITE}{workspace.state / 'mlflow.db'}"
    here = workspace.repository.absolute()
    return f"{SQLITE}{here / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def usable_uri(workspace: Workspace) -> str:
    """The same, the repository's own store made to lead to its own files.

    Raises UserError where that fails, and where no store can be at such an address.
    """
    own, uri = workspace.state.absolute() / "mlflow.db", tracking_uri(workspace)
    _refuse(uri, _form_fault(uri))
    if uri == f"{SQLITE}{own}":
        relocate(own)
    return uri


def artifact_location(uri: str, workspace: Workspace) -> str | None:
    """The folder for artifacts of new experiments, beside the database; None where a server decides."""
    if uri.startswith(SERVERS):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else workspace.state.absolute()
    return (folder / "artifacts").as_uri()


def check_store(workspace: Workspace) -> None:
    """Raise UserError where the tracking store can never work; one that is away may come back."""
    uri = tracking_uri(workspace)
    try:
        fault = _form_fault(uri)
        if not fault and uri.startswith(SQLITE):
            fault = _file_fault(Path(uri.removeprefix(SQLITE)))
        elif not fault and uri.startswith(SERVERS):
            fault = _server_fault(uri)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        fault = f"cannot be used: {error.strerror}"
    _refuse(uri, fault)


def _refuse(uri: str, fault: str) -> None:
    if fault and os.environ.get(VARIABLE):
        raise UserError(f"{VARIABLE}: found {redact(uri)}, which {fault}; {FORMS}")
    if fault:
        raise UserError(f"{uri} {fault}; restore it from a backup, or move it away: a new, empty one is made")


def _form_fault(uri: str) -> str:
    """Why there can be no store at an address, seen without opening it; empty where there can."""
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        if "?" in uri:
            return "holds a question mark, where the path in such an address ends"
        return "is no file" if path.exists() and not path.is_file() else ""  # a pipe would be waited for
    if not uri.startswith(SERVERS):
        return _driver_fault(uri)
    try:
        parts = urlsplit(uri)
        known = parts.port != 0 and not re.search(r"\s", uri)
    except ValueError:  # [::1, :port
        return "is no address of a server"
    return "" if known and parts.hostname else "names no host" if known else "is no address of a server"


def _file_fault(path: Path) -> str:
    """Why no sqlite database can be at a path; empty where one can. Raises OSError where it cannot be written."""
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        return f"needs a folder {folder}, where a file is"
    TemporaryFile(dir=folder).close()
    try:
        if path.exists():
            path.open("ab").close()
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as database:
                database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        pass  # it is locked
    except sqlite3.DatabaseError as error:
        return f"is no sqlite database ({error})"
    return ""


def _server_fault(uri: str) -> str:
    """Why no MLflow server can be at an address; empty where one is, or none answers."""
    scheme, _, rest = uri.partition("://")
    host = rest.rpartition("@")[2].rstrip("/")
    try:
        address = f"{scheme}://{host}/api/2.0/mlflow/experiments/search?max_results=1"
        with urlopen(address, timeout=1.5) as answer:  # without credentials: a login may be elsewhere
            known = answer.read(1) == b"{" or answer.url != address
    except HTTPError as error:  # MLflow's own errors are JSON; a server that asks who is there may be MLflow
        known = error.code in (401, 403, 407, 429) or error.code >= 500 or error.read(1) == b"{"
    except OSError:
        return ""
    except (HTTPException, ValueError) as error:
        return f"is no address of an MLflow server ({type(error).__name__})"
    return "" if known else "answers, but not as an MLflow server does"


def _driver_fault(uri: str) -> str:
    """Why there can be no such database; empty where its driver is installed."""
    if uri.partition(":")[0].partition("+")[0] not in ("postgresql", "mysql", "mssql"):
        return "is no known kind of store"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ImportError, ValueError, SQLAlchemyError) as error:
        return f"needs a driver: {error}"
    return ""


def connect(workspace: Workspace, *, tables: bool = True) -> "MlflowClient":
    """A client of the tracking store, reached and its schema in place. Raises UserError where it is away.

    A process that needs none of MLflow's `tables` may import it as mlflow-skinny is, without pandas: 0.4 CPU-seconds.
    """
    uri = usable_uri(workspace)
    os.environ.update(ENVIRONMENT | os.environ)
    absent = () if tables or "pandas" in sys.modules else ("pandas",)
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # to import what is None is an ImportError
    try:
        import mlflow
        from mlflow import environment_variables

        for name in os.environ:
            if name.startswith("MLFLOW_") and hasattr(environment_variables, name):
                getattr(environment_variables, name).get()
    except ValueError as error:
        raise UserError(f"environment: a variable of MLflow's: {error}") from None
    finally:
        for name in absent:
            del sys.modules[name]
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised below
    named = {name: value for name, value in os.environ.items() if name == VARIABLE}
    mlflow.set_tracking_uri(uri)  # which sets the variable too, where the next call may be from another repository
    os.environ.pop(VARIABLE, None)
    os.environ.update(named)
    with ExitStack() as stack:
        stack.enter_context(one_line_errors())
        if uri.startswith(SQLITE):  # the first request creates the schema, and many processes may start at once
            database = Path(uri.removeprefix(SQLITE))
            database.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock_of(database)))
            if not database.exists():  # MLflow's migrations, killed half way, leave a store that cannot be used
                for half in database.parent.glob(f".{database.name}.*.new*"):
                    half.unlink()
                whole = database.with_name(f".{database.name}.{uuid4().hex}.new")
                mlflow.MlflowClient(f"{SQLITE}{whole}").search_experiments(max_results=1)
                whole.replace(database)
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
        final = LASTING.search(reason) or (isinstance(error, MlflowException) and error.error_code not in AWAY)
        kind = UserError if final else TransientError
        how = "answers" if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" else "cannot be used"
        raise kind(f"{VARIABLE}: the tracking store {get_tracking_uri()} {how}: {reason[:300]}") from None


@contextmanager
def tolerated(*codes: str) -> Iterator[None]:
    """The block, which ends early where MLflow answers with one of these error codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def all_pages(search: Callable[..., Any], *given: object) -> list[Any]:
    """What one of MLflow's searches finds, on all of its pages."""
    page = search(*given)
    found = list(page)
    while page.token:
        page = search(*given, page_token=page.token)
        found += page
    return found


def experiment_id(client: "MlflowClient", name: str, workspace: Workspace) -> str:
    """The experiment of that name: created, or found and restored where it was deleted."""
    from mlflow.exceptions import MlflowException

    tags = experiment_tags()
    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location(client.tracking_uri, workspace), tags))
        except MlflowException:  # another process may have been faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key in tags.keys() - experiment.tags.keys():
        client.set_experiment_tag(experiment.experiment_id, key, tags[key])
    return str(experiment.experiment_id)


def view_address(experiment: str) -> str:
    """The experiment's charts in the saved view, after the server's address."""
    return f"/#/experiments/{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={VIEW}&{ML_PAGES}"


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment: its kind, and a saved view, which shows the bound's terms first, two lines a chart.

    MLflow's pages read them, but its documentation promises none: the view is named in the menu of the runs' page, and
    opens by `viewStateShareKey` in its address.
    """
    charts = [_chart(f"train/{term}", f"validation/{term}") for term in ("elbo", "reconstruction", "kl")]
    columns = [*(f"metrics.`test/{name}`" for name in COLUMNS), "tags.`vaeline.decision`"]
    state = {"compareRunCharts": charts, "compareRunSections": [SECTION], "isAccordionReordered": True}
    saved = {"name": "ELBO, NLL, bits/dim", "createdAt": 0, "state": json.dumps(state | {"selectedColumns": columns})}
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(saved)}


def _chart(*metrics: str) -> dict[str, object]:
    """A line chart of some metrics by step."""
    about = {"type": "LINE", "uuid": metrics[0], "metricSectionId": SECTION["uuid"], "runsCountToCompare": 10}
    scales = {"xAxisKey": "step", "yAxisKey": "metric", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "yAxisExpressions": []}
    return {**about, "metricKey": metrics[0], "selectedMetricKeys": list(metrics), **scales, **shared}
