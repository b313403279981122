"""Lineage of a registered model, read from the tracking store: code, params, data, machine, run, decision."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vaeline.registry.versions import UNKNOWN, find_by_digest, find_version_at
from vaeline.tracking.provenance import CUT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

DIFF, HISTORY, METRICS = "git/uncommitted.diff", "reports/history.csv", "reports/metrics.json"  # artifacts of a run
MACHINE = "vaeline.machine."
T = TypeVar("T", list[Any], dict[str, Any])


@dataclass(frozen=True)
class Changes:
    """Uncommitted changes of tracked files."""

    content: bytes = field(repr=False)  # input of `git apply`

    @property
    def cut(self) -> bool:
        """Whether it was too large to be kept whole."""
        return self.content.endswith(CUT)

    def files(self) -> dict[str, tuple[int, int]]:
        """Lines added and removed, by file."""
        found: dict[str, tuple[int, int]] = {}
        name, in_hunk = "", False
        for line in self.content.decode("utf-8", "replace").splitlines():
            if start := re.fullmatch(r'diff --git "?a/.* "?b/(.*?)"?', line):
                name, in_hunk = start[1], False
                found[name] = (0, 0)
            elif line.startswith("@@"):
                in_hunk = True
            elif in_hunk and line[:1] in ("+", "-"):
                added, removed = found[name]
                found[name] = (added + (line[0] == "+"), removed + (line[0] == "-"))
        return found


@dataclass(frozen=True)
class Lineage:
    """Origin of a version; empty where the store has nothing."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]  # the version's over the run's
    run_id: str = ""
    run_name: str = ""
    experiment_id: str = ""
    status: str = ""
    started: int | None = None  # ms since the epoch
    ended: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # reports/metrics.json: with standard errors
    dataset: Mapping[str, Any] = field(default_factory=dict)  # name, shape, images by split
    changes: Changes | None = None

    @property
    def uri(self) -> str:
        """Address by number, which unlike an alias never moves."""
        return f"models:/{self.name}/{self.version}"

    def tag(self, name: str) -> str:
        """Tag `vaeline.<name>`; empty where there is none."""
        return self.tags.get(f"vaeline.{name}", "")

    @property
    def dirty(self) -> bool:
        """Whether tracked files differed from the commit."""
        return self.tag("git_dirty") == "true"

    @property
    def untracked(self) -> list[str]:
        """Files that git did not follow; their content was not kept."""
        return [str(name) for name in _json(self.tag("git_untracked"), list)]

    @property
    def reasons(self) -> list[str]:
        """Reasons of the gate's decision."""
        return [str(reason) for reason in _json(self.tag("reasons"), list)]

    @property
    def gate(self) -> dict[str, Any]:
        """Numbers of the gate's decision."""
        return _json(self.tag("gate"), dict)

    @property
    def versions(self) -> dict[str, Any]:
        """Versions of Python and the packages."""
        return _json(self.tag("versions"), dict)

    @property
    def machine(self) -> dict[str, str]:
        """Properties of the machine that can change a result's last digits, see `vaeline.training.device.identity`."""
        return {key.removeprefix(MACHINE): value for key, value in self.tags.items() if key.startswith(MACHINE)}

    def content(self) -> dict[str, Any]:
        """Plain values for JSON."""
        changes = self.changes
        files = {name: {"added": a, "removed": r} for name, (a, r) in changes.files().items()} if changes else {}
        diff = {"bytes": len(changes.content), "cut": changes.cut, "files": files} if changes else None
        code = {"commit": self.tag("git_commit"), "dirty": self.dirty, "diff": diff, "untracked": self.untracked}
        run = {"id": self.run_id, "name": self.run_name, "experiment_id": self.experiment_id, "status": self.status}
        return {
            "model": {
                "uri": self.uri,
                "name": self.name,
                "version": self.version,
                "aliases": list(self.aliases),
                **{key: self.tag(key) for key in ("model_digest", "likelihood", "objective", "manifest")},
            },
            "decision": {"decision": self.tag("decision"), "reasons": self.reasons, "gate": self.gate},
            "code": code,
            "data": {"digest": self.tag("data_digest"), **self.dataset},
            "dvc_experiment": self.tag("dvc_experiment"),
            "prefect_flow_run": self.tag("flow_run_id"),
            "mlflow_run": {**run, "started": self.started, "ended": self.ended, "made_from": self.tag("made_from")},
            "machine": self.machine,
            "versions": self.versions,
            "metrics": dict(self.metrics),
            "evaluation": dict(self.evaluation),
            "params": dict(self.params),
        }


def trace(client: "MlflowClient", uri: str) -> Lineage:
    """Lineage of the model at `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises UserError where there is no such model, and MLflow's errors where the store is away.
    """
    return describe(client, find_version_at(client, uri))


def trace_digest(client: "MlflowClient", name: str, digest: str) -> Lineage | None:
    """Lineage of the version of `name` with this model digest; None where there is none."""
    version = find_by_digest(client, name, digest)
    return describe(client, version) if version else None


def describe(client: "MlflowClient", version: "ModelVersion") -> Lineage:
    """Lineage of a version; little is known where its run was deleted, or it was registered by hand."""
    name, number = str(version.name), str(version.version)
    aliases = client.get_registered_model(name).aliases
    own_aliases = tuple(sorted(alias for alias, target in aliases.items() if str(target) == number))
    run = _run(client, version.run_id)
    if run is None:
        return Lineage(name, number, own_aliases, dict(version.tags))
    tags = {**run.data.tags, **version.tags}
    diff = artifact(client, run.info.run_id, DIFF) if tags.get("vaeline.git_dirty") == "true" else None
    return Lineage(
        name,
        number,
        own_aliases,
        tags,
        run_id=run.info.run_id,
        run_name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        started=run.info.start_time,
        ended=run.info.end_time,
        params=dict(run.data.params),
        metrics={key: value for key, value in run.data.metrics.items() if not key.startswith("system/")},
        dataset=_dataset(run),
        evaluation=_json(artifact(client, run.info.run_id, METRICS) or b"", dict),
        changes=None if diff is None else Changes(diff),
    )


def artifact(client: "MlflowClient", run_id: str, path: str) -> bytes | None:
    """Content of a run's artifact; None where it has none of that name."""
    folder = path.rpartition("/")[0]
    if path not in {entry.path for entry in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        return Path(client.download_artifacts(run_id, path, temporary)).read_bytes()


def _run(client: "MlflowClient", run_id: str | None) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None


def _dataset(run: "Run") -> dict[str, Any]:
    """Name, shape and counts of the run's first readable dataset input."""
    for given in run.inputs.dataset_inputs if run.inputs else ():
        try:
            features = json.loads(json.loads(given.dataset.schema or "")["mlflow_tensorspec"]["features"])
            counts = json.loads(given.dataset.profile or "")
            return {"name": given.dataset.name, "shape": features[0]["tensor-spec"]["shape"][1:], "images": counts}
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return {}


def _json(text: str | bytes, kind: type[T]) -> T:
    """Parsed JSON of the given kind; empty where it is something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return kind()
    return value if isinstance(value, kind) else kind()
