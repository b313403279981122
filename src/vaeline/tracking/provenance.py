"""Provenance of a run: params, tags, git state, data set. No mlflow import."""

import getpass
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from vaeline.config import Params
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.git import DUBIOUS_OWNERSHIP, TRUST_COMMAND, git_bytes
from vaeline.io.workspace import RunContext, Workspace

MAXIMUM_DIFF = 1_000_000  # bytes; a larger diff is cut
CUT = b"\n... cut\n"  # how a cut one ends
UNTRACKED_CHARACTERS = 4000  # of names; a tag of MLflow's holds no more than 8000
PACKAGES = ("vaeline", "torch", "numpy", "dvc", "mlflow", "prefect")
# numbers of reports/metrics.json -> their names in MLflow; the whole file is an artifact of the run
LATENT_METRICS = {
    "latent/mutual_information": "test/latent_mutual_information",
    "latent/total_correlation": "test/latent_total_correlation",
    "latent/mmd/squared": "test/latent_mmd_squared",
    "latent/mig": "test/latent_mig",
    "latent/probes/knn_accuracy/posterior_means": "test/latent_knn_accuracy",
    "latent/probes/linear_accuracy/posterior_means": "test/latent_linear_accuracy",
    "latent/frechet_cnn_features/reconstructions": "test/latent_frechet_reconstructions",
    "latent/frechet_cnn_features/prior_samples": "test/latent_frechet_prior_samples",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Everything known when a run starts; plain values that go into the outbox."""

    experiment: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None  # name, digest, manifest
    diff: bytes = b""  # uncommitted changes of tracked files, as `git apply` takes them


def run_start(workspace: Workspace, params: Params) -> RunStart:
    """Describe a run of these params on this working tree and this prepared data (if it is there)."""
    context, experiment = RunContext.read(), os.environ.get("DVC_EXP_NAME")
    git_tags, diff = _git_state(workspace.root)
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "vaeline.versions": json.dumps(versions()),
        "vaeline.dvc_experiment": experiment,
        "vaeline.flow_run_id": context.flow_run,
        "vaeline.sweep": context.sweep,
        "mlflow.parentRunId": context.parent_run,
    }
    dataset = None
    with suppress(OSError, ValueError):
        path = workspace.prepared / "manifest.json"
        manifest = json.loads(path.read_text())
        tags["vaeline.data_digest"] = file_digest(path)
        dataset = {"name": params.data.title, "digest": file_digest(path), "manifest": manifest}
    model, train = params.model, params.train  # a readable name: gaussian-mlp-z20, bernoulli-conv-z32-beta4
    name = f"{model.likelihood.kind}-{model.network.kind}-z{model.latent_dim}"
    name += f"-beta{train.beta:g}" if train.beta != 1 else ""
    name += f"-{train.objective}" if train.objective != "elbo" else ""
    name += f"-k{train.samples}" if train.samples != 1 else ""
    name += f"-{train.estimator}" if train.estimator != "pathwise" else ""
    return RunStart(
        experiment=context.experiment or params.register_.name,
        name=experiment or name,
        params=flatten_params(params),
        tags=git_tags | {tag: value for tag, value in tags.items() if value},
        dataset=dataset,
        diff=diff,
    )


def flatten_params(params: Params) -> dict[str, str]:
    """`{"train.beta": "1.0", ...}`: every key path of params.yaml and its value as text."""
    flat = leaves(params.model_dump(by_alias=True))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat}


def flatten_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """`{"test/elbo": -243.1, ...}`: the numbers of a nested report; what is no number is left out."""
    flat = leaves(report, "/")
    return {k: float(v) for k, v in flat if isinstance(v, int | float) and not isinstance(v, bool)}


def headline_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of reports/metrics.json that MLflow shows beside the curves: `test/elbo`, ..., `test/latent_mig`.

    Standard errors and the other latent metrics stay in the run's artifact reports/metrics.json.
    """
    flat = flatten_metrics(report)
    test = [key for key in flat if key.startswith("test/") and not key.endswith("_se")]
    shown = {key: key for key in test if key != "test/importance_samples"} | LATENT_METRICS
    return {name: flat[key] for key, name in shown.items() if key in flat}


def user() -> str:
    """Name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a result; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def leaves(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("code.diff.bytes", 12), ...`: the leaves of nested mappings with their paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value


def _git_state(root: Path) -> tuple[dict[str, str], bytes]:
    """Tags of the commit and the working tree, and the changes of tracked files; nothing where there is no commit.

    The changes leave out dvc.lock, which DVC itself rewrites, and have the form that `git apply` takes at the
    repository's top, whatever the user's settings for `git diff` are.
    """
    form = ("--no-relative", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/")
    paths = ("--dst-prefix=b/", "--", ":/", ":(top,exclude)dvc.lock")
    others = ("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/")
    commit = ""
    try:
        commit = git_bytes(root, "rev-parse", "HEAD", timeout=30).decode().strip()
        diff = git_bytes(root, "-c", "core.quotePath=false", "diff", "HEAD", *form, *paths, timeout=30)
        output = git_bytes(root, *others, timeout=30)
    except UserError as error:
        if DUBIOUS_OWNERSHIP in str(error):
            wanted = f"{TRUST_COMMAND} {root.absolute()}"
            log.warning("the commit is not recorded: this folder is another user's; to trust it: %s", wanted)
        elif commit:  # a file too large for git, a slow disk
            log.warning("the commit is not recorded: its uncommitted changes are not known: %s", error)
        return {}, b""
    tags = {"vaeline.git_commit": commit, "mlflow.source.git.commit": commit}
    tags["vaeline.git_dirty"] = str(bool(diff)).lower()
    names = [name for name in output.decode("utf-8", "replace").split("\0") if name and name != "dvc.lock"]
    ends = accumulate(map(len, names))
    listed = [name for name, end in zip(names, ends, strict=True) if end < UNTRACKED_CHARACTERS]
    if names:
        rest = [f"... and {len(names) - len(listed)} more"] if len(listed) < len(names) else []
        tags["vaeline.git_untracked"] = json.dumps(listed + rest, ensure_ascii=False)
    return tags, diff if len(diff) <= MAXIMUM_DIFF else diff[:MAXIMUM_DIFF] + CUT
