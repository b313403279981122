"""The registered version of the model at hand, kept in a file: asking MLflow takes seconds."""

import json
from contextlib import suppress
from pathlib import Path

from pipeline.report.summary import registration
from vaeline.errors import UserError, redact
from vaeline.io.atomic_write import write_file
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import SQLITE, tracking_uri


def registered_version(workspace: Workspace, again: bool = False) -> str | None:
    """Number of the version for reports/registration.json: from the file, else (or with `again`) from MLflow.

    None where nothing was registered here, and where the registry has it not, or is away.
    """
    if not (decision := registration(workspace)):
        return None
    uri, path = tracking_uri(workspace), workspace.state / "registered.json"
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
            write_file(path, json.dumps(wanted | {"version": str(version.version)}).encode())
            return str(version.version)
    return None
