"""The registered version and the MLflow run that hold for the model at hand, remembered: telling costs nothing."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.report import summary
from pipeline.services.servers import MLFLOW, running
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import current_workspace, state_folder
from vaeline.tracking.connection import SQLITE, artifact_location, redact, tracking_uri


@dataclass(frozen=True)
class Registered:
    """Where a model is: a version's number and run never change; both None where the registry has none."""

    uri: str
    name: str
    digest: str
    version: str | None = None
    run_id: str | None = None

    def links(self) -> dict[str, str]:
        """Pages of MLflow's web interface by what they show; none where no server is known."""
        base = _interface()
        if base is None or self.version is None:
            return {}
        return {
            f"{self.name} version {self.version}": f"{base}/#/models/{self.name}/versions/{self.version}",
            f"MLflow run {self.run_id}": f"{base}/#/runs/{self.run_id}",
        }


def registered(anew: bool = False) -> Registered | None:
    """What holds for reports/registration.json: remembered, else (or `anew`) asked, which takes MLflow's seconds.

    None where nothing was registered here.
    """
    wanted = _wanted()
    if wanted is None:
        return None
    if not anew and (known := remembered()):
        return known
    found = _ask(wanted)
    if found.version is not None:
        write_file(_memory(), json.dumps(asdict(found)).encode())
    return found


def remembered() -> Registered | None:
    """The same without asking; None where it is not known, or MLflow's database is gone."""
    uri, wanted = tracking_uri(current_workspace()), _wanted()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None
    try:
        known = Registered(**json.loads(_memory().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return known if replace(known, version=None, run_id=None) == wanted else None


def _wanted() -> Registered | None:
    decision = summary.registration()
    return (
        Registered(redact(tracking_uri(current_workspace())), decision["name"], decision["digest"])
        if decision
        else None
    )


def _ask(wanted: Registered) -> Registered:
    from vaeline.registry.versions import find_by_digest
    from vaeline.tracking.connection import connect, one_line_errors

    try:
        client = connect(current_workspace(), timeout_s=5, retries=0)
        with one_line_errors():
            version = find_by_digest(client, wanted.name, wanted.digest)
    except UserError:
        return wanted
    if version is None:
        return wanted
    return Registered(wanted.uri, wanted.name, wanted.digest, str(version.version), version.run_id)


def _memory() -> Path:
    return state_folder() / "registered.json"


def _interface() -> str | None:
    """Where MLflow's pages are."""
    uri = tracking_uri(current_workspace())
    if artifact_location(uri, current_workspace()) is None:
        return redact(uri).rstrip("/")
    server = running(current_workspace(), MLFLOW)
    return server.address if server else None
