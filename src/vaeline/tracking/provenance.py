"""What a run says about where it comes from: params, tags, git state, data set. No mlflow import."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeline.config import Params
from vaeline.digests import file_digest
from vaeline.workspace import PREPARED

MAXIMUM_DIFF = 1_000_000  # bytes; a larger diff is cut


@dataclass(frozen=True)
class RunStart:
    """Everything known when a run starts; plain values that go into the spool."""

    experiment: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None  # name, digest, source, manifest
    diff: str = ""  # uncommitted changes of tracked files


def run_start(params: Params, prepared: Path = PREPARED) -> RunStart:
    """Describe a run of these params on this working tree and this prepared data (if it is there)."""
    commit, diff = _git("rev-parse", "HEAD").strip(), _uncommitted()
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    if commit:
        tags |= {"vaeline.git_commit": commit, "mlflow.source.git.commit": commit}
        tags["vaeline.git_dirty"] = str(bool(diff)).lower()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["vaeline.dvc_experiment"] = experiment
    if flow_run := os.environ.get("VAELINE_FLOW_RUN_ID"):
        tags["vaeline.flow_run_id"] = flow_run
    if sweep := os.environ.get("VAELINE_SWEEP"):
        tags["vaeline.sweep"] = sweep
    if parent := os.environ.get("VAELINE_PARENT_RUN_ID"):
        tags["mlflow.parentRunId"] = parent
    dataset = describe_data(prepared, params.data.source.kind)
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


def _uncommitted() -> str:
    """The changes of tracked files since the last commit; DVC itself rewrites dvc.lock, which is no change."""
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", ":/", ":(top,exclude)dvc.lock")
    return diff if len(diff) <= MAXIMUM_DIFF else diff[:MAXIMUM_DIFF] + "\n... cut\n"


def _git(*arguments: str) -> str:
    """What a git command says; empty where there is no git or no repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.decode("utf-8", "replace")
