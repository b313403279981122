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
from vaeline.io.safe_read import parse_json, read_bounded
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import ML_PAGES, SQLITE, artifact_location, tracking_uri, view_address

FILE, MOST_BYTES = "registered.json", 10_000


def registered_version(workspace: Workspace, again: bool = False) -> str | None:
    """Number of the version for reports/registration.json: from the file, else (or with `again`) from MLflow.

    None where nothing was registered here, and where the registry has it not, or is away.
    """
    if not (decision := registration(workspace)):
        return None
    uri, path = tracking_uri(workspace), workspace.state / FILE
    wanted = {"uri": redact(uri), "name": decision["name"], "digest": decision["digest"]}
    if not again and not (uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()):
        with suppress(UserError, KeyError, AttributeError):
            kept = parse_json(read_bounded(path, MOST_BYTES), str(path))
            if wanted.items() < kept.items():
                return str(kept["version"])
    from vaeline.registry.versions import find_by_digest
    from vaeline.tracking.connection import connect, one_line_errors

    with suppress(UserError):
        client = connect(workspace, tables=False)
        with one_line_errors():
            version = find_by_digest(client, wanted["name"], wanted["digest"])
        if version:
            with suppress(UserError), one_line_errors():  # the run was deleted
                wanted["run"] = client.get_run(str(version.run_id)).info.experiment_id + f"/runs/{version.run_id}"
            write_file(path, json.dumps(wanted | {"version": str(version.version)}).encode())
            return str(version.version)
    return None


def pages(workspace: Workspace) -> dict[str, str]:
    """MLflow's pages of the experiment, the run and the version by name; the list of experiments where none is known.

    Where no server runs they are those that `vaeline ui` serves.
    """
    uri, server, version = tracking_uri(workspace), running(workspace, MLFLOW), registered_version(workspace)
    own = artifact_location(uri, workspace) is not None
    base = server.address if server else f"http://{HOST}:5000" if own else redact(uri).rstrip("/")
    if not version:
        return {"experiments": f"{base}{ML_PAGE}"}
    kept, found = json.loads((workspace.state / FILE).read_text()), {}
    if "run" in kept:
        found["experiment"] = f"{base}{view_address(kept['run'].partition('/')[0])}"
        found["run"] = f"{base}/#/experiments/{kept['run']}?{ML_PAGES}"
    name = f"{kept['name']} version {version}"
    return found | {name: f"{base}/#/models/{quote(kept['name'])}/versions/{version}?{ML_PAGES}"}


def next_steps(workspace: Workspace) -> str:
    """Where to look after a run, and what to keep, as lines of text."""
    lines = [*pages(workspace).values()]
    if not running(workspace, MLFLOW) and artifact_location(tracking_uri(workspace), workspace) is not None:
        lines.insert(0, "vaeline ui (MLflow and Prefect in the browser)")
    lines = [f"runs:     {lines[0]}", *(f"{' ' * 10}{line}" for line in lines[1:])]
    changed = try_git(workspace.root, "status", "--porcelain", "params.yaml", "dvc.lock") or ""
    if "dvc.lock" in changed:
        files = "params.yaml dvc.lock" if "params.yaml" in changed else "dvc.lock"
        lines.append(f'keep:     git add {files} && git commit -m "What this run made"')
    return "\n".join(lines) + "\n"
