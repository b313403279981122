"""Lineage of a registered model: code, params, data, machine, run, decision, and the package that was verified.

What the tracking store says of a run is a claim: only the package's manifest says, where it knows, which code trained
the model.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeline.errors import UserError
from vaeline.io.git import git_bytes
from vaeline.io.safe_read import parse_json, read_bounded
from vaeline.registry.load import available, storage_errors, verified
from vaeline.registry.versions import UNKNOWN, find_version_at, json_tag
from vaeline.serving.package import Package
from vaeline.serving.signatures import trusted_signers
from vaeline.tracking.provenance import CUT, MAXIMUM_DIFF

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DIFF, HISTORY, METRICS = "git/uncommitted.diff", "reports/history.csv", "reports/metrics.json"  # artifacts of a run
MACHINE = "vaeline.machine."
RUN = {  # content -> MLflow's attributes; times are ms since the epoch
    "id": "run_id",
    "name": "run_name",
    "experiment_id": "experiment_id",
    "status": "status",
    "started": "start_time",
    "ended": "end_time",
}
LARGEST_ARTIFACT = 32 << 20  # bytes


@dataclass(frozen=True)
class Lineage:
    """Origin of a version."""

    uri: str  # by number, which unlike an alias never moves
    content: dict[str, Any]  # plain values for JSON; empty where the store has nothing
    diff: bytes | None = None  # uncommitted changes of tracked files, as `git apply` takes them
    signed: bool = False  # a trusted key's owner signed which commit and diff it was
    package: Package | None = None

    @property
    def cut(self) -> bool:
        """Whether the diff was too large to be kept whole."""
        return self.diff is not None and self.diff.endswith(CUT)


def trace(client: "MlflowClient", uri: str) -> Lineage:
    """Lineage of the model at `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises UserError where there is no such model, where its package cannot be verified, or where its run names other
    code than its manifest, and MLflow's errors where the store is away.
    """
    version = find_version_at(client, uri)
    name, number = str(version.name), str(version.version)
    uri = f"models:/{name}/{number}"
    package = verified(uri)
    run, code = _run(client, version.run_id), package.manifest.code
    tags = {**(run.data.tags if run else {}), **version.tags}

    def tag(key: str) -> str:
        return str(tags.get(f"vaeline.{key}", ""))

    dirty = bool(code.diff) if code else tag("git_dirty") == "true"
    diff = (
        artifact(client, run, DIFF, MAXIMUM_DIFF + len(CUT)) if run and (dirty or tag("git_dirty") == "true") else None
    )
    if code is not None:
        found = code.diff if diff is None else hashlib.sha256(diff).hexdigest()  # None: it is not there
        if (tag("git_commit") or code.commit, found) != (code.commit, code.diff):
            raise UserError(f"{uri}: its run's commit or {DIFF} is not what its manifest names: it was changed")
    evaluation = artifact(client, run, METRICS) if run else None
    aliases = client.get_registered_model(name).aliases
    content = {
        "model": {
            "uri": uri,
            "name": name,
            "version": number,
            "aliases": sorted(alias for alias, target in aliases.items() if str(target) == number),
            **{key: tag(key) for key in ("model_digest", "likelihood", "objective", "manifest")},
        },
        "decision": {
            "decision": tag("decision"),
            "reasons": [str(reason) for reason in json_tag(tags, "reasons", list)],
            "gate": json_tag(tags, "gate", dict),
        },
        "code": {
            "commit": code.commit if code else tag("git_commit"),
            "dirty": dirty,
            "diff": None if diff is None else {"bytes": len(diff), "cut": diff.endswith(CUT), "files": _files(diff)},
            "untracked": [str(path) for path in json_tag(tags, "git_untracked", list)],
        },
        "data": {"digest": package.manifest.data_digest, **_dataset(run)},
        "dvc_experiment": tag("dvc_experiment"),
        "prefect_flow_run": tag("flow_run_id"),
        "mlflow_run": {key: (getattr(run.info, name) if run else "") or "" for key, name in RUN.items()}
        | {"made_from": tag("made_from")},
        "machine": {key.removeprefix(MACHINE): value for key, value in tags.items() if key.startswith(MACHINE)},
        "versions": json_tag(tags, "versions", dict),
        "metrics": {k: v for k, v in run.data.metrics.items() if not k.startswith("system/")} if run else {},
        "evaluation": json_tag({"vaeline.": (evaluation or b"").decode("utf-8", "replace")}, "", dict),
        "params": dict(run.data.params) if run else {},
    }
    signed = code is not None and trusted_signers() is not None
    return Lineage(uri, content, diff, signed, package)


def artifact(client: "MlflowClient", run: "Run", path: str, most: int = LARGEST_ARTIFACT) -> bytes | None:
    """Content of a run's artifact; None where it has none of that name. Raises UserError for a larger one."""
    address = f"{run.info.artifact_uri}/{path}"
    with storage_errors(address):
        names = {entry.path for entry in client.list_artifacts(run.info.run_id, path.rpartition("/")[0])}
    if path not in names:
        return None
    with available(address) as file:
        return read_bounded(file, most)


def _run(client: "MlflowClient", run_id: str | None) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None


def _files(diff: bytes) -> dict[str, dict[str, int]]:
    """Lines added and removed, by file; empty where the diff is cut."""
    try:
        rows = git_bytes(Path(), "apply", "--numstat", "-z", "-", stdin=diff).decode("utf-8", "replace").split("\0")
    except UserError:
        return {}
    found = [row.split("\t", 2) for row in rows if row]
    return {name: {"added": int(a) if a != "-" else 0, "removed": int(r) if r != "-" else 0} for a, r, name in found}


def _dataset(run: "Run | None") -> dict[str, Any]:
    """Name, shape and counts of the run's first readable dataset input."""
    for given in run.inputs.dataset_inputs if run and run.inputs else ():
        try:
            schema = parse_json((given.dataset.schema or "").encode(), "schema")["mlflow_tensorspec"]["features"]
            shape = parse_json(schema.encode(), "features")[0]["tensor-spec"]["shape"][1:]
            counts = parse_json((given.dataset.profile or "").encode(), "profile")
            images = {str(split): int(count) for split, count in counts.items()}
            return {"name": given.dataset.name, "shape": [int(side) for side in shape], "images": images}
        except (UserError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue
    return {}
