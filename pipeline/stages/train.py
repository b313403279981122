"""Stage train: prepared data, `model` and `train` -> `models/`, `reports/history.csv`."""

import hashlib
import logging
import os
import sys
from functools import partial
from typing import Any

import torch

from pipeline.stages.training_processes import PEER_LOST, launch
from vaeline.config import AutoencoderKl, read_params
from vaeline.config.train import INIT_CONFIG, INIT_PERCEPTUAL, INIT_WEIGHTS, Diffusers
from vaeline.data.prepared import centre, load_split, load_whole, manifest_digest, read_manifest
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import file_digest, model_digest
from vaeline.io.workspace import Workspace, current_workspace
from vaeline.io.yaml_config import read_yaml
from vaeline.serving.model_files import save_model
from vaeline.tracking.connection import check_store
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import latest_artifact, open_training_run
from vaeline.training import checkpoint
from vaeline.training.device import identity, number, pick_device, pick_precision
from vaeline.training.history import to_csv
from vaeline.training.process_group import PeerLostError, ProcessGroup, joined
from vaeline.training.splits import Splits, latent_scale
from vaeline.training.trainer import train

log = logging.getLogger(__name__)


def main() -> None:
    """Train, or resume training, and put the result in place; by several processes where VAELINE_NPROC says so."""
    workspace, device = current_workspace(), pick_device()
    processes = 1 if "RANK" in os.environ else number("VAELINE_NPROC", 1)
    if processes > 1:
        if device.type == "cuda" and processes > (present := torch.cuda.device_count()):
            raise UserError(f"VAELINE_NPROC: {processes} processes need a GPU each, {present} are here")
        return launch(processes, workspace)
    try:
        with joined(device) as group:
            _train(workspace, group, device)
    except PeerLostError as error:
        log.warning("%s", error)
        sys.exit(PEER_LOST)


def _train(workspace: Workspace, group: ProcessGroup, device: torch.device) -> None:
    params, manifest, prepared = read_params(workspace.params), read_manifest(workspace.prepared), workspace.prepared
    whole, validation = load_whole(prepared, "train"), load_split(prepared, "validation")
    splits = Splits(centre(whole, manifest.shape), validation, manifest.binarise, whole)
    data: dict[str, Any] = {
        "digest": manifest_digest(prepared),
        "source": manifest.source,
        "binarise": manifest.binarise,
    }
    if params.data.crop and (uncropped := params.data.whole_shape()):
        data["uncropped"] = uncropped[1:]
    options, initial = params.train, dict[str, str]()
    if isinstance(options.init, Diffusers):  # what stage fetch has copied
        options = options.model_copy(update={"init": Diffusers(kind="diffusers", path=str(workspace.init))})
        initial = {name: file_digest(workspace.init / name) for name in (INIT_CONFIG, INIT_WEIGHTS)}
    if options.perceptual:
        path = workspace.init / INIT_PERCEPTUAL
        copied = options.perceptual.model_copy(update={"weights": str(path)})
        options = options.model_copy(update={"perceptual": copied})
        initial[INIT_PERCEPTUAL] = file_digest(path)
    key = checkpoint.training_key(params, data["digest"], device, group.size, initial)
    if group.broadcast(key.encode(), device) != key.encode():
        raise UserError(f"process {group.rank} of {group.size}: its params, data, code or device are not rank zero's")
    precision = pick_precision(params.train.precision, device)
    checkpoints, history = workspace.state / "checkpoints" / key, workspace.reports / "history.csv"
    ours = partial(train, params.model, options, splits, device=device, checkpoints=checkpoints, group=group)
    if not group.is_rank_zero:
        ours()
        return
    with checkpoint.owned(checkpoints):
        checkpoint.drop_abandoned(checkpoints.parent)
        check_store(workspace)
        resume = checkpoint.read(checkpoints) is not None or not _is_committed(workspace, key)
        with open_training_run(workspace, key, run_start(workspace, params), resume=resume) as run:
            machine = identity(device, group.size, precision)
            run.tags({f"vaeline.machine.{name}": str(value) for name, value in machine.items()})
            result = ours(tracker=run)
            scale = {}
            if isinstance(params.model.network, AutoencoderKl):  # for models of its latents
                shift, factor = latent_scale(result.model, splits, params.train.seed, device)
                scale = {"shift_factor": shift, "scale_factor": factor}
            description = {"model": params.model.model_dump(mode="json"), "objective": params.train.objective}
            save_model(workspace.model, result.model, description | {"precision": precision} | scale | {"data": data})
            write_file(history, to_csv(result.history).encode())
            run.artifact(history, "reports")
            run.finish_training(model_digest(workspace.model))
        checkpoint.remove(checkpoints)


def _is_committed(workspace: Workspace, key: str) -> bool:
    """Whether DVC has recorded the history.csv of this training; else it was killed after the training had ended."""
    history, lock = latest_artifact(workspace, key, "history.csv"), workspace.root / "dvc.lock"
    if history is None or not lock.exists():
        return False
    outputs = (read_yaml(lock) or {}).get("stages", {}).get("train", {}).get("outs", [])
    return hashlib.md5(history, usedforsecurity=False).hexdigest() in [
        out["md5"] for out in outputs if out["path"] == "reports/history.csv"
    ]
