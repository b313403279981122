"""Stage train: prepared data, `model` and `train` -> `models/`, `reports/history.csv`."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from pipeline.stages.training_processes import ending_with_peers, launch, refuse_other_training, wanted_processes
from vaeline.config import Params, Residual, read_params
from vaeline.data.prepared import load_split, manifest_digest, read_manifest
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import model_digest
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.io.yaml_config import read_yaml
from vaeline.serving.model_files import save_model
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import latest_artifact, open_training_run
from vaeline.training import checkpoint
from vaeline.training.device import identity, pick_device
from vaeline.training.history import to_csv
from vaeline.training.key import training_key
from vaeline.training.process_group import ProcessGroup, joined
from vaeline.training.scale import scale_factor
from vaeline.training.splits import Splits
from vaeline.training.trainer import Result, train

HISTORY = "history.csv"


def main() -> None:
    """Train, or resume training, and put the result in place; by several processes where VAELINE_NPROC says so."""
    workspace = current_workspace()
    if "RANK" not in os.environ and (processes := wanted_processes()) > 1:
        return launch(processes, workspace)
    device = pick_device()
    with ending_with_peers(), joined(device) as group:
        return _train(workspace, group, device)


def _train(workspace: Workspace, group: ProcessGroup, device: torch.device) -> None:
    params, manifest = read_params(workspace.params), read_manifest(workspace.prepared)
    prepared = workspace.prepared
    splits = Splits(load_split(prepared, "train"), load_split(prepared, "validation"), manifest.binarise)
    data = {"digest": manifest_digest(prepared), "source": manifest.source, "binarise": manifest.binarise}
    key = training_key(params, data["digest"], device, group.size)
    refuse_other_training(group, key, device)
    checkpoints = workspace.state / "checkpoints" / key
    if not group.is_rank_zero:
        train(params.model, params.train, splits, device=device, checkpoints=checkpoints, group=group)
        return
    with checkpoint.owned(checkpoints):
        checkpoint.drop_abandoned(checkpoints.parent)
        resume = checkpoint.read(checkpoints) is not None or not is_committed(
            latest_artifact(workspace, key, HISTORY), workspace.root
        )
        with open_training_run(workspace, key, run_start(workspace, params), resume=resume) as run:
            run.tags({f"vaeline.machine.{name}": str(value) for name, value in identity(device, group.size).items()})
            result = train(
                params.model, params.train, splits, device=device, checkpoints=checkpoints, tracker=run, group=group
            )
            save_model(workspace.model, result.model, describe(result, params, splits, device) | {"data": data})
            write_file(workspace.reports / HISTORY, to_csv(result.history).encode())
            run.artifact(workspace.reports / HISTORY, "reports")
            run.finish_training(model_digest(workspace.model))
        checkpoint.remove(checkpoints)


def is_committed(history: bytes | None, root: Path) -> bool:
    """Whether DVC has recorded this `history.csv`; else it was killed after the training had ended."""
    lock = root / "dvc.lock"
    if history is None or not lock.exists():
        return False
    outputs = (read_yaml(lock) or {}).get("stages", {}).get("train", {}).get("outs", [])
    found = hashlib.md5(history, usedforsecurity=False).hexdigest()
    return any(out["path"] == (Workspace().reports / HISTORY).as_posix() and out["md5"] == found for out in outputs)


def describe(result: Result, params: Params, splits: Splits, device: torch.device) -> dict[str, Any]:
    """The model's config.json, but for the data; spatial latents have a scale, for models of the latents."""
    description: dict[str, Any] = {"model": params.model.model_dump(mode="json"), "objective": params.train.objective}
    if isinstance(params.model.network, Residual):
        description["scale_factor"] = scale_factor(result.model, splits, params.train.seed, device)
    return description
