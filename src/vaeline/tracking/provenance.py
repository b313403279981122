"""What a run says about where it comes from: params, tags, git state, data set. No mlflow import."""

import getpass
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeline.config import Params
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.git import DUBIOUS_OWNERSHIP, TRUST_COMMAND, git_bytes
from vaeline.io.run_context import RunContext
from vaeline.io.workspace import Workspace

MAXIMUM_DIFF = 1_000_000  # bytes; a larger diff is cut
CUT = b"\n... cut\n"  # how a cut one ends
UNTRACKED_TOLD = 4000  # characters of names; a tag of MLflow's holds no more than 8000
PACKAGES = ("vaeline", "torch", "numpy", "dvc", "mlflow", "prefect")
# numbers of reports/metrics.json -> their names in MLflow; the whole file is an artifact of the run
LATENT_METRICS = {
    "latent/mutual_information": "test_latent_mutual_information",
    "latent/total_correlation": "test_latent_total_correlation",
    "latent/mmd/squared": "test_latent_mmd_squared",
    "latent/mig": "test_latent_mig",
    "latent/probes/knn_accuracy/posterior_means": "test_latent_knn_accuracy",
    "latent/probes/linear_accuracy/posterior_means": "test_latent_linear_accuracy",
    "latent/frechet_cnn_features/reconstructions": "test_latent_frechet_reconstructions",
    "latent/frechet_cnn_features/prior_samples": "test_latent_frechet_prior_samples",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Everything known when a run starts; plain values that go into the outbox."""

    experiment: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None  # name, digest, source, manifest
    diff: bytes = b""  # uncommitted changes of tracked files, as `git apply` takes them


def run_start(workspace: Workspace, params: Params) -> RunStart:
    """Describe a run of these params on this working tree and this prepared data (if it is there)."""
    commit = _git("rev-parse", "HEAD").decode().strip()
    diff = _uncommitted() if commit else b""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    tags["vaeline.versions"] = json.dumps(versions())
    if commit:
        tags |= {"vaeline.git_commit": commit, "mlflow.source.git.commit": commit}
        tags["vaeline.git_dirty"] = str(bool(diff)).lower()
        if untracked := _untracked():
            tags["vaeline.git_untracked"] = json.dumps(untracked, ensure_ascii=False)
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["vaeline.dvc_experiment"] = experiment
    context = RunContext.read()
    inherited = {
        "vaeline.flow_run_id": context.flow_run,
        "vaeline.sweep": context.sweep,
        "mlflow.parentRunId": context.parent_run,
    }
    tags |= {name: value for name, value in inherited.items() if value}
    dataset = describe_data(workspace.prepared, params.data.source.kind)
    if dataset is not None:
        tags["vaeline.data_digest"] = str(dataset["digest"])
    return RunStart(
        experiment=params.register_.name,
        name=experiment or _readable_name(params),
        params=flatten_params(params),
        tags=tags,
        dataset=dataset,
        diff=diff,
    )


def describe_data(prepared: Path, name: str) -> dict[str, Any] | None:
    """The prepared data's name, digest and manifest, or None where there is none."""
    path = prepared / "manifest.json"
    try:
        return {"name": name, "digest": file_digest(path), "manifest": json.loads(path.read_text())}
    except (OSError, ValueError):
        return None


def flatten_params(params: Params) -> dict[str, str]:
    """`{"train.beta": "1.0", ...}`: every key path of params.yaml and its value as text."""
    return dict(_leaves(params.model_dump(by_alias=True)))


def flatten_metrics(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """`{"test/elbo": -243.1, ...}`: the numbers of a nested report; what is no number is left out."""
    flat: dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, Mapping):
            flat |= flatten_metrics(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def user() -> str:
    """Who is at work here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def headline_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of reports/metrics.json that MLflow shows beside the curves: `test_elbo`, ..., `test_latent_mig`.

    Names without a slash make one section of MLflow's charts, after `train/` and `validation/`. Standard errors and
    the other latent metrics stay in the run's artifact reports/metrics.json.
    """
    flat = flatten_metrics(report)
    shown = {"validation/elbo": "validation_elbo"} | LATENT_METRICS
    for key in flat:
        if key.startswith("test/") and not key.endswith("_se") and key != "test/importance_samples":
            shown[key] = key.replace("/", "_")
    return {name: flat[key] for key, name in shown.items() if key in flat}


def versions() -> dict[str, str]:
    """Of Python and of what computes, versions and tracks here; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    leaves = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            leaves += _leaves(item, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, item if isinstance(item, str) else json.dumps(item)))
    return leaves


def _readable_name(params: Params) -> str:
    """Such as `gaussian-mlp-z20` or `bernoulli-conv-z32-beta4`."""
    model, train = params.model, params.train
    parts = [model.likelihood.kind, model.network.kind, f"z{model.latent_dim}"]
    parts += [f"beta{train.beta:g}"] if train.beta != 1 else []
    parts += [train.objective] if train.objective != "elbo" else []
    parts += [f"k{train.samples}"] if train.samples != 1 else []
    parts += [train.estimator] if train.estimator != "pathwise" else []
    return "-".join(parts)


def _uncommitted() -> bytes:
    """The changes of tracked files since the last commit; DVC itself rewrites dvc.lock, which is no change.

    In the form that `git apply` takes at the repository's top, whatever the user's settings for `git diff` are.
    """
    form = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    diff = _git(
        "-c", "core.quotePath=false", "diff", "HEAD", "--no-relative", *form, "--", ":/", ":(top,exclude)dvc.lock"
    )
    return diff if len(diff) <= MAXIMUM_DIFF else diff[:MAXIMUM_DIFF] + CUT


def _untracked() -> list[str]:
    """Files that git neither follows nor ignores, whose content the diff therefore lacks; their names only."""
    output = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/")
    names = [name for name in output.decode("utf-8", "replace").split("\0") if name and name != "dvc.lock"]
    told: list[str] = []
    while names and sum(map(len, told)) + len(names[0]) < UNTRACKED_TOLD:
        told.append(names.pop(0))
    return [*told, f"... and {len(names)} more"] if names else told


def _git(*arguments: str) -> bytes:
    """Output of a git command; empty where there is no git or no repository, or Git does not trust its owner."""
    try:
        return git_bytes(Path(), *arguments, timeout=10)
    except UserError as error:
        if DUBIOUS_OWNERSHIP in str(error):
            log.warning(
                "the commit is not recorded: this folder is another user's; to trust it: %s %s",
                TRUST_COMMAND, Path.cwd(),
            )  # fmt: skip
        return b""
