"""What made a registered model, read from the tracking store: code, params, data, machine, run, decision."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeline.errors import UserError
from vaeline.io.digests import model_digest
from vaeline.tracking.connection import redact
from vaeline.tracking.provenance import CUT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9]\d*))")
DIFF, HISTORY, METRICS = "git/uncommitted.diff", "reports/history.csv", "reports/metrics.json"  # artifacts of a run


@dataclass(frozen=True)
class Changes:
    """Uncommitted changes of tracked files."""

    content: bytes = field(repr=False)  # what `git apply` takes

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
    """All that is known of where a version comes from; empty where the store does not say."""

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
        """Its address; unlike an alias it stays."""
        return f"models:/{self.name}/{self.version}"

    def tag(self, name: str) -> str:
        """The tag `vaeline.<name>`; empty where there is none."""
        return self.tags.get(f"vaeline.{name}", "")

    def parsed(self, name: str) -> Any:
        """A tag that holds JSON; None where there is none or it is something else."""
        try:
            return json.loads(self.tag(name))
        except ValueError:
            return None

    @property
    def dirty(self) -> bool:
        """Whether tracked files differed from the commit."""
        return self.tag("git_dirty") == "true"

    @property
    def untracked(self) -> list[str]:
        """Files that git did not follow; their content was not kept."""
        return _texts(self.parsed("git_untracked"))

    @property
    def reasons(self) -> list[str]:
        """The gate's."""
        return _texts(self.parsed("reasons"))

    @property
    def gate(self) -> dict[str, Any]:
        """The gate's numbers."""
        return _mapping(self.parsed("gate"))

    @property
    def versions(self) -> dict[str, Any]:
        """Of Python and the packages."""
        return _mapping(self.parsed("versions"))

    @property
    def machine(self) -> dict[str, str]:
        """What of the machine can change a result's last digits: see `vaeline.training.device.identity`."""
        prefix = "vaeline.machine."
        return {key.removeprefix(prefix): value for key, value in self.tags.items() if key.startswith(prefix)}

    def content(self) -> dict[str, Any]:
        """For machines: plain values."""
        changes = self.changes
        files = {name: {"added": a, "removed": r} for name, (a, r) in changes.files().items()} if changes else {}
        diff = {"bytes": len(changes.content), "cut": changes.cut, "files": files} if changes else None
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
            "code": {
                "commit": self.tag("git_commit"),
                "dirty": self.dirty,
                "diff": diff,
                "untracked": self.untracked,
            },
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
    """Where the model at `models:/NAME@ALIAS` or `models:/NAME/VERSION` comes from.

    Raises UserError where there is no such model, and what MLflow raises where the store is away.
    """
    return describe(client, find(client, uri))


def find(client: "MlflowClient", uri: str) -> "ModelVersion":
    """The version at an address; raises UserError, saying what there is, where there is none."""
    match = ADDRESS.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: allowed: models:/NAME@champion, models:/NAME/VERSION")
    name, alias = match["name"], match["alias"]
    aliases = _aliases(client, name)
    if aliases is None:
        known = ", ".join(sorted(model.name for model in client.search_registered_models()))
        raise UserError(f"{uri}: no model {name!r} in {redact(client.tracking_uri)}; there are: {known or 'none'}")
    if alias and alias not in aliases:
        found = ", ".join(f"{a} (version {v})" for a, v in sorted(aliases.items()))
        raise UserError(f"{uri}: {name} has no alias {alias!r}; it has: {found or 'none'}")
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    number = str(aliases[alias]) if alias else match["version"]
    if number not in versions:
        raise UserError(f"{uri}: {name} has no version {number}; it has: {', '.join(sorted(versions, key=int))}")
    return versions[number]


def of_digest(client: "MlflowClient", name: str, digest: str) -> Lineage | None:
    """The lineage of the version of `name` with this model digest; None where there is none."""
    from vaeline.registry.versions import find_version

    version = find_version(client, name, digest)
    return describe(client, version) if version else None


def describe(client: "MlflowClient", version: "ModelVersion") -> Lineage:
    """The lineage of a version; one whose run is gone, or that was registered by hand, has little."""
    name, number = str(version.name), str(version.version)
    aliases = _aliases(client, name) or {}
    here = tuple(sorted(alias for alias, at in aliases.items() if str(at) == number))
    run = _run(client, version.run_id)
    if run is None:
        return Lineage(name, number, here, dict(version.tags))
    tags = {**run.data.tags, **version.tags}
    diff = artifact(client, run.info.run_id, DIFF) if tags.get("vaeline.git_dirty") == "true" else None
    return Lineage(
        name,
        number,
        here,
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
        evaluation=_report(artifact(client, run.info.run_id, METRICS)),
        changes=None if diff is None else Changes(diff),
    )


def artifact(client: "MlflowClient", run_id: str, path: str) -> bytes | None:
    """The content of a run's artifact; None where it has none of that name."""
    folder = path.rpartition("/")[0]
    if path not in {entry.path for entry in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        return Path(client.download_artifacts(run_id, path, temporary)).read_bytes()


def download_model(client: "MlflowClient", lineage: Lineage, folder: Path) -> Path:
    """The registered model.safetensors and config.json, copied under `folder`; the folder that holds them.

    Raises UserError where they are not those that were registered.
    """
    import mlflow

    mlflow.set_tracking_uri(client.tracking_uri)
    package = Path(mlflow.artifacts.download_artifacts(lineage.uri, dst_path=str(folder)))
    found = [path.parent for path in package.glob("artifacts/*/model.safetensors")]
    if len(found) != 1 or not (found[0] / "config.json").is_file():
        raise UserError(f"{lineage.uri}: holds no model.safetensors with its config.json: not registered by vaeline")
    if (digest := model_digest(found[0])) != lineage.tag("model_digest"):
        raise UserError(
            f"{lineage.uri}: its stored files have the digest {digest}, {lineage.tag('model_digest') or 'none'} was "
            "registered: they were changed"
        )
    return found[0]


def _aliases(client: "MlflowClient", name: str) -> dict[str, str] | None:
    """Versions by alias; None where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _run(client: "MlflowClient", run_id: str | None) -> "Run | None":
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _dataset(run: "Run") -> dict[str, Any]:
    """Name, shape and counts, as the courier wrote them."""
    for given in run.inputs.dataset_inputs if run.inputs else ():
        try:
            features = json.loads(json.loads(given.dataset.schema or "")["mlflow_tensorspec"]["features"])
            counts = json.loads(given.dataset.profile or "")
            return {"name": given.dataset.name, "shape": features[0]["tensor-spec"]["shape"][1:], "images": counts}
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return {}


def _report(content: bytes | None) -> dict[str, Any]:
    try:
        return _mapping(json.loads(content or b""))
    except ValueError:
        return {}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
