"""The registered version and the MLflow run that hold for the model at hand, remembered: telling costs nothing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import daemons, report
from pipeline.servers import MLFLOW
from vaeline.durable import write_whole
from vaeline.errors import UserError
from vaeline.tracking.store import SQLITE, artifact_location, redact, tracking_uri
from vaeline.workspace import state_folder


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
    decision = report.registration()
    if not decision:
        return None
    wanted = Registered(redact(tracking_uri()), decision["name"], decision["digest"])
    known = None if anew or _store_is_gone() else _recall()
    if known and (known.uri, known.name, known.digest) == (wanted.uri, wanted.name, wanted.digest):
        return known
    found = _ask(wanted)
    if found.version is not None:
        write_whole(_memory(), json.dumps(asdict(found)).encode())
    return found


def _ask(wanted: Registered) -> Registered:
    from vaeline.tracking.registry import find_version
    from vaeline.tracking.store import connect

    try:
        version = find_version(connect(timeout_s=5, retries=0), wanted.name, wanted.digest)
    except UserError:
        return wanted
    if version is None:
        return wanted
    return Registered(wanted.uri, wanted.name, wanted.digest, str(version.version), version.run_id)


def _recall() -> Registered | None:
    try:
        return Registered(**json.loads(_memory().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _store_is_gone() -> bool:
    uri = tracking_uri()
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()


def _memory() -> Path:
    return state_folder() / "registered.json"


def _interface() -> str | None:
    """Where MLflow's pages are."""
    uri = tracking_uri()
    if artifact_location(uri) is None:
        return redact(uri).rstrip("/")
    server = daemons.running(MLFLOW)
    return server.address if server else None
