"""Lineage of a registered model: code, params, data, machine, run, decision, and the package that was verified.

What the tracking store says of a run is a claim: only the package's manifest says, where it knows, which code trained
the model.
"""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaeline.errors import UserError
from vaeline.io.safe_read import read_bounded
from vaeline.registry.load import available, storage_errors, verified
from vaeline.registry.versions import UNKNOWN, find_version_at, parsed, utc
from vaeline.serving.package import Package
from vaeline.serving.signatures import trusted_signers
from vaeline.tracking.connection import tolerated
from vaeline.tracking.provenance import CUT, MAXIMUM_DIFF

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DIFF, HISTORY, METRICS = "git/uncommitted.diff", "reports/history.csv", "reports/metrics.json"  # artifacts of a run
PREFIX = "vaeline."  # of tags
LARGEST_ARTIFACT = 32 << 20  # bytes


@dataclass(frozen=True)
class Lineage:
    """Origin of a version."""

    uri: str  # by number, which unlike an alias never moves
    content: dict[str, Any]  # plain values for JSON; empty where the store has nothing
    package: Package
    diff: bytes | None  # uncommitted changes of tracked files, as `git apply` takes them
    history: bytes | None  # history.csv of the run
    signed: bool  # a trusted key's owner signed which commit and diff it was


def trace(client: "MlflowClient", uri: str) -> Lineage:
    """Lineage of the model at `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises UserError where there is no such model, where its package cannot be verified, where its run is gone, or names
    other code than its manifest, and MLflow's errors where the store is away.
    """
    version = find_version_at(client, uri)
    name, number = str(version.name), str(version.version)
    uri = f"models:/{name}/{number}"
    package = verified(uri)
    run, code, model = None, package.manifest.code, package.loaded.config
    with tolerated(*UNKNOWN):
        run = client.get_run(version.run_id or "none")
    if run is None:
        raise UserError(f"{uri}: its run is not in the tracking store: nothing is known of its training")
    named = (run.data.tags | version.tags).items()
    tags = defaultdict(str, {key.removeprefix(PREFIX): value for key, value in named if key.startswith(PREFIX)})
    claimed = tags["git_dirty"] == "true"
    dirty = bool(code.diff) if code else claimed
    diff = _artifact(client, run, DIFF, MAXIMUM_DIFF + len(CUT)) if dirty or claimed else None
    if code is not None:
        found = code.diff if diff is None else hashlib.sha256(diff).hexdigest()  # None: it is not there
        if (tags["git_commit"] or code.commit, found) != (code.commit, code.diff):
            raise UserError(f"{uri}: its run's commit or {DIFF} is not what its manifest names: it was changed")
    aliases = client.get_registered_model(name).aliases
    files = [path.decode("utf-8", "replace") for path in re.findall(rb"(?m)^diff --git a/.* b/(.*)$", diff or b"")]
    signed = code is not None and trusted_signers() is not None
    content = {
        "model": {
            "uri": uri,
            "name": name,
            "version": number,
            "aliases": sorted(alias for alias, target in aliases.items() if str(target) == number),
            "model_digest": package.manifest.model_digest,
            "likelihood": model.model.likelihood.kind,
            "objective": model.objective,
            "manifest": tags["manifest"],
        },
        "code": {
            "commit": code.commit if code else tags["git_commit"],
            "dirty": dirty,
            "diff": None if diff is None else {"bytes": len(diff), "cut": diff.endswith(CUT), "files": files},
            "untracked": [str(path) for path in parsed(tags["git_untracked"], list)],
        },
        "data": {"digest": package.manifest.data_digest, **_dataset(run)},
        "evaluation": parsed(_artifact(client, run, METRICS) or b"", dict),
        **_run_content(run, tags),
    }
    return Lineage(uri, content, package, diff, _artifact(client, run, HISTORY), signed)


def _run_content(run: "Run", tags: defaultdict[str, str]) -> dict[str, Any]:
    """What the tags of the version and its run, and the run, say."""
    info = run.info
    return {
        "decision": {
            "decision": tags["decision"],
            "reasons": [str(reason) for reason in parsed(tags["reasons"], list)],
            "gate": parsed(tags["gate"], dict),
        },
        "dvc_experiment": tags["dvc_experiment"],
        "prefect_flow_run": tags["flow_run_id"],
        "mlflow_run": {
            "id": info.run_id,
            "name": info.run_name,
            "experiment_id": info.experiment_id,
            "status": info.status,
            "started": utc(info.start_time),
            "ended": utc(info.end_time),
            "made_from": tags["made_from"],
        },
        "machine": {key.removeprefix("machine."): value for key, value in tags.items() if key.startswith("machine.")},
        "versions": parsed(tags["versions"], dict),
        "metrics": dict(run.data.metrics),
        "params": dict(run.data.params),
    }


def _artifact(client: "MlflowClient", run: "Run", path: str, most: int = LARGEST_ARTIFACT) -> bytes | None:
    """Content of a run's artifact; None where it has none of that name. Raises UserError for a larger one."""
    address = f"{run.info.artifact_uri}/{path}"
    with storage_errors(address):
        names = {entry.path for entry in client.list_artifacts(run.info.run_id, path.rpartition("/")[0])}
    if path not in names:
        return None
    with available(address) as file:
        return read_bounded(file, most)


def _dataset(run: "Run") -> dict[str, Any]:
    """Name, shape and counts of the run's data set."""
    try:
        inputs: Any = run.inputs
        data = inputs.dataset_inputs[0].dataset
        profile = parsed(data.profile or "", dict)
        shape = [int(side) for side in profile.pop("shape")]
        return {"name": data.name, "shape": shape, "images": {key: int(count) for key, count in profile.items()}}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}
