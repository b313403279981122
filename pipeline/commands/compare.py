"""`vaeline compare`: the params in which models differ, and their test ELBOs, paired over the images of data/prepared.

A model is named by a registry's address, the id of an MLflow run, or the name of a DVC experiment.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vaeline
from pipeline.services.dvc_command import error_line, run_dvc
from pipeline.stages.register import gate_evaluator
from vaeline.config import parse_params
from vaeline.core.metrics import Measured
from vaeline.errors import UserError
from vaeline.evaluation.split_metrics import gain
from vaeline.io.git import git
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import parse_yaml
from vaeline.registry.versions import ADDRESS, DIGEST_TAG, find_version_at
from vaeline.serving.model_files import LoadedModel
from vaeline.tracking.connection import connect, one_line_errors
from vaeline.tracking.provenance import flatten_params

RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Compared:
    """A model and all its params by key path."""

    name: str
    params: Mapping[str, str]
    loaded: LoadedModel


def compare(workspace: Workspace, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each model: the params that are not the same everywhere, ELBO and difference to the first one, `*_se`.

    Nats a test image; both are missing, and `note` says why, where the test split is another one or the first one's
    nats are of another likelihood. Raises UserError for a name that is none.
    """
    found, gate, rows = [find(workspace, name) for name in names], gate_evaluator(workspace), list[dict[str, Any]]()
    keys = list(dict.fromkeys(key for model in found for key in model.params))
    keys = [key for key in keys if len({model.params.get(key) for model in found}) > 1]
    first, *others = (gate.candidate(model.loaded) for model in found)
    for model, evidence in zip(found, (first, *others), strict=True):
        row: dict[str, Any] = {"name": model.name, "params": {key: model.params.get(key, "") for key in keys}}
        if evidence.scores is None:
            row["note"] = "no ELBO on the test split of data/prepared: of other data, or an autoencoder"
        else:
            row |= Measured.of(evidence.scores.elbo).numbers("elbo")
            if evidence.likelihood != first.likelihood:
                row["note"] = f"nats of another likelihood, {evidence.likelihood}: no difference to the first"
            elif evidence is not first and first.scores is not None:
                row |= gain(evidence.scores, first.scores).numbers("difference")
        rows.append(row)
    return rows


def find(workspace: Workspace, name: str) -> Compared:
    """The model of that name."""
    if RUN.fullmatch(name) or ADDRESS.fullmatch(name):
        client = connect(workspace)
        with one_line_errors():
            run = client.get_run(name if RUN.fullmatch(name) else find_version_at(client, name).run_id or "")
            digest, experiment = (run.data.tags.get(tag, "") for tag in (DIGEST_TAG, "vaeline.dvc_experiment"))
            versions = client.search_model_versions(f"tags.`{DIGEST_TAG}` = '{digest}'") if RUN.fullmatch(name) else []
        address = f"models:/{versions[0].name}/{versions[0].version}" if versions else name
        if ADDRESS.fullmatch(address):
            return Compared(name, run.data.params, vaeline.load(address).loaded)
        loaded = _experiment(workspace, experiment)[1] if experiment else None
        if loaded is None or loaded.digest != digest:
            raise UserError(f"{name}: neither a version nor a DVC experiment holds the model of this run")
        return Compared(name, run.data.params, loaded)
    return Compared(name, *_experiment(workspace, name))


def _experiment(workspace: Workspace, name: str) -> tuple[Mapping[str, str], LoadedModel]:
    """Params and model of a DVC experiment, the model out of DVC's cache."""
    lines = git(workspace.root, "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").split()
    if len(lines) > 1:
        raise UserError(f"{name}: {len(lines)} baselines have an experiment of this name; name its run's id instead")
    if not lines or not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"{name!r}: allowed: models:/NAME/3, models:/NAME@champion, a run's id, a DVC experiment")
    params = parse_params(parse_yaml(git(workspace.root, "show", f"{lines[0]}:./params.yaml"), name), name)
    with tempfile.TemporaryDirectory() as folder:
        done = run_dvc(workspace, "dvc", "get", "--rev", lines[0], ".", "models", "-o", f"{folder}/models")
        if done.returncode:
            reason = error_line(done.stderr.splitlines(), done.returncode)
            raise UserError(f"{name}: its model cannot be read: {reason}")
        return flatten_params(params), vaeline.load(Path(folder) / "models").loaded
