"""Everything that a tracking store says, without what differs between two runs of the same: ids, times, speeds."""

import hashlib
import re
from pathlib import Path
from typing import Any

from vaeline.io.workspace import current_workspace

PASSING = re.compile(r".*images_per_second")
IMAGE = re.compile(r"images/(.+\+step\+\d+)\+timestamp\+\d+\+[0-9a-f-]+(.*)")
TAGS = ("vaeline.model_digest", "vaeline.data_digest", "vaeline.decision", "mlflow.loggedImages")


def inspect_store() -> dict[str, Any]:
    """Runs and versions as plain values; a point that is there twice is there twice."""
    from vaeline.tracking.connection import connect

    client = connect(current_workspace())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [_run(client, run) for run in client.search_runs(experiments)]
    versions = [
        {
            "version": int(version.version),
            "aliases": sorted(client.get_model_version(version.name, version.version).aliases),
            "tags": {key: value for key, value in version.tags.items() if key in (*TAGS, "vaeline.reasons")},
        }
        for version in client.search_model_versions()
    ]
    return {"runs": runs, "versions": versions}


def _run(client: Any, run: Any) -> dict[str, Any]:
    run_id = run.info.run_id
    points = {}
    for key in run.data.metrics:
        history = client.get_metric_history(run_id, key)
        passing = PASSING.fullmatch(key)
        points[key] = sorted([point.step, None if passing else point.value] for point in history)
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": dict(run.data.params),
        "tags": {key: value for key, value in run.data.tags.items() if key in TAGS},
        "points": points,
        "count": sum(map(len, points.values())),
        "inputs": len(run.inputs.dataset_inputs),
        "files": sorted(_files(client, run_id, run.info.artifact_uri)),
    }


def _files(client: Any, run_id: str, uri: str, folder: str = "") -> list[list[str]]:
    found: list[list[str]] = []
    for entry in client.list_artifacts(run_id, folder or None):
        if entry.is_dir:
            found += _files(client, run_id, uri, entry.path)
            continue
        local = Path(uri.removeprefix("file://")) / entry.path
        digest = hashlib.sha256(local.read_bytes()).hexdigest()[:12] if local.exists() else ""
        found.append([IMAGE.sub(r"images/\1\2", entry.path), digest])
    return found
