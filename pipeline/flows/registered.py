"""The registered version and the run of the model at hand, kept in a file: asking MLflow takes seconds."""

import json
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from pipeline.report.summary import registration
from pipeline.services.servers import HOST, ML_PAGE, MLFLOW, running
from vaeline.errors import UserError, redact
from vaeline.io.atomic_write import write_file
from vaeline.io.git import try_git
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import SQLITE, artifact_location, tracking_uri

FILE = "registered.json"


def registered_version(workspace: Workspace, again: bool = False) -> str | None:
    """Number of the version for reports/registration.json: from the file, else (or with `again`) from MLflow.

    None where nothing was registered here, and where the registry has it not, or is away.
    """
    if not (decision := registration(workspace)):
        return None
    uri, path = tracking_uri(workspace), workspace.state / FILE
    wanted = {"uri": redact(uri), "name": decision["name"], "digest": decision["digest"]}
    if not again and not (uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            kept = json.loads(path.read_text())
            if wanted.items() < kept.items():
                return str(kept["version"])
    from vaeline.registry.versions import find_by_digest
    from vaeline.tracking.connection import connect, one_line_errors

    with suppress(UserError):
        client = connect(workspace)
        with one_line_errors():
            version = find_by_digest(client, wanted["name"], wanted["digest"])
        if version:
            with suppress(UserError), one_line_errors():  # the run was deleted
                wanted["run"] = client.get_run(str(version.run_id)).info.experiment_id + f"/runs/{version.run_id}"
            write_file(path, json.dumps(wanted | {"version": str(version.version)}).encode())
            return str(version.version)
    return None


def next_steps(workspace: Workspace) -> str:
    """Where to look after a run, and what to keep, as lines of text: pages of MLflow's, of the run and the version."""
    uri, server, version = tracking_uri(workspace), running(workspace, MLFLOW), registered_version(workspace)
    lines, base = ["runs:     "], server.address if server else redact(uri).rstrip("/")
    if not server and artifact_location(uri, workspace) is not None:
        lines, base = ["runs:     vaeline ui (MLflow and Prefect in the browser)", " " * 10], f"http://{HOST}:5000"
    pages = [f"{base}{ML_PAGE}"]
    if version:
        kept = json.loads((workspace.state / FILE).read_text())
        pages = [f"{base}/#/experiments/{kept['run']}"] if "run" in kept else pages
        pages.append(f"{base}/#/models/{quote(kept['name'])}/versions/{version}")
    lines[-1] += f"\n{' ' * 10}".join(pages)
    if try_git(workspace.root, "status", "--porcelain", "dvc.lock"):
        lines.append('keep:     git add dvc.lock && git commit -m "What this run made"')
    return "\n".join(lines) + "\n"
