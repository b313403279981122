"""Stage train: prepared data, `model` and `train` -> `models/`, `reports/history.csv`."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from pipeline.stages.training_processes import agree, assembled
from vaeline.config import Params, Residual, read_params
from vaeline.data.prepared import load_split, manifest_digest, read_manifest
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import model_digest
from vaeline.io.workspace import MODEL, PARAMS, PREPARED, REPORTS, current_workspace, state_folder
from vaeline.io.yaml_config import read_yaml
from vaeline.serving.model_files import save_model
from vaeline.tracking.runs import latest_artifact, open_training_run, run_start
from vaeline.training import checkpoint
from vaeline.training.device import identity, pick_device
from vaeline.training.history import to_csv
from vaeline.training.key import training_key
from vaeline.training.process_group import Team
from vaeline.training.scale import scale_factor
from vaeline.training.splits import Splits
from vaeline.training.trainer import Result, train

HISTORY = REPORTS / "history.csv"


def main() -> None:
    """Train, or go on training, and put the result in place."""
    params, manifest, digest = read_params(PARAMS), read_manifest(PREPARED), manifest_digest(PREPARED)
    splits = Splits(load_split(PREPARED, "train"), load_split(PREPARED, "validation"), manifest.binarise)
    data = {"digest": digest, "source": manifest.source, "binarise": manifest.binarise}
    with assembled("train") as team:
        key = training_key(params, digest, pick_device(), team.size)
        agree(team, key)
        checkpoints = state_folder() / "checkpoints" / key
        if team.leads:
            lead(team, key, params, splits, data, checkpoints)
        else:
            train(params.model, params.train, splits, device=pick_device(), checkpoints=checkpoints, team=team)


def lead(team: Team, key: str, params: Params, splits: Splits, data: dict[str, str], checkpoints: Path) -> None:
    """Train, tell the tracker, and write the outputs: what one process of a team does."""
    device = pick_device()
    with checkpoint.owned(checkpoints):
        checkpoint.drop_abandoned(checkpoints.parent)
        resume = checkpoint.read(checkpoints) is not None or not is_committed(
            latest_artifact(current_workspace(), key, HISTORY.name)
        )
        with open_training_run(current_workspace(), key, run_start(current_workspace(), params), resume=resume) as run:
            run.tags({f"vaeline.machine.{name}": str(value) for name, value in identity(device, team.size).items()})
            result = train(
                params.model, params.train, splits, device=device, checkpoints=checkpoints, tracker=run, team=team
            )
            put_in_place(result, described(result, params, splits, device) | {"data": data})
            run.artifact(HISTORY, "reports")
            run.finish_training(model_digest(MODEL))
        checkpoint.remove(checkpoints)


def is_committed(history: bytes | None, lock: Path = Path("dvc.lock")) -> bool:
    """Whether DVC has taken over this `history.csv`; else it was killed after the training had ended."""
    if history is None or not lock.exists():
        return False
    outputs = (read_yaml(lock) or {}).get("stages", {}).get("train", {}).get("outs", [])
    found = hashlib.md5(history, usedforsecurity=False).hexdigest()
    return any(out["path"] == HISTORY.as_posix() and out["md5"] == found for out in outputs)


def described(result: Result, params: Params, splits: Splits, device: torch.device) -> dict[str, Any]:
    """What the model says of itself; spatial latents have a scale, for those who model them in turn."""
    description: dict[str, Any] = {"model": params.model.model_dump(mode="json"), "objective": params.train.objective}
    if isinstance(params.model.network, Residual):
        description["scale_factor"] = scale_factor(result.model, splits, params.train.seed, device)
    return description


def put_in_place(result: Result, description: dict[str, Any]) -> None:
    """Write the outputs, each whole or not at all."""
    save_model(MODEL, result.model, description)
    write_file(HISTORY, to_csv(result.history).encode())
