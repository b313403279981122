"""The registered version and the MLflow run of the model at hand, kept in a file: asking MLflow takes seconds."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.report.summary import registration
from pipeline.services.servers import MLFLOW, running
from vaeline.errors import UserError, redact
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import SQLITE, artifact_location, tracking_uri


@dataclass(frozen=True)
class Registered:
    """Where a model is: a version's number and run never change; both None where the registry has none."""

    uri: str
    name: str
    digest: str
    version: str | None = None
    run_id: str | None = None


def registered(workspace: Workspace, again: bool = False) -> Registered | None:
    """The entry for reports/registration.json: from the file, else (or with `again`) from MLflow.

    None where nothing was registered here.
    """
    if not (decision := registration(workspace)):
        return None
    uri, path = tracking_uri(workspace), workspace.state / "registered.json"
    wanted = Registered(redact(uri), decision["name"], decision["digest"])
    if not again and not (uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()):
        with suppress(OSError, ValueError, TypeError):
            kept = Registered(**json.loads(path.read_text()))
            if replace(kept, version=None, run_id=None) == wanted:
                return kept
    from vaeline.registry.versions import find_by_digest
    from vaeline.tracking.connection import connect, one_line_errors

    with suppress(UserError):
        client = connect(workspace)
        with one_line_errors():
            version = find_by_digest(client, wanted.name, wanted.digest)
        if version:
            wanted = replace(wanted, version=str(version.version), run_id=version.run_id)
            write_file(path, json.dumps(asdict(wanted)).encode())
    return wanted


def links(workspace: Workspace, found: Registered) -> dict[str, str]:
    """Pages of MLflow's web interface by what they show; none where no server is known."""
    uri, server = tracking_uri(workspace), running(workspace, MLFLOW)
    base = redact(uri).rstrip("/") if artifact_location(uri, workspace) is None else server.address if server else ""
    if not base or found.version is None:
        return {}
    return {
        f"{found.name} version {found.version}": f"{base}/#/models/{found.name}/versions/{found.version}",
        f"MLflow run {found.run_id}": f"{base}/#/runs/{found.run_id}",
    }
