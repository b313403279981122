"""Checkpoints: safetensors and JSON in one file, written whole, whose name holds its SHA-256. Nothing is unpickled.

The last two are kept; a damaged one is passed over.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

import vaeline
from vaeline.config import Params
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import file_digest, value_digest
from vaeline.io.locks import has_path
from vaeline.training.device import identity, pick_precision

log = logging.getLogger(__name__)

SOURCES = ("core/*.py", "training/*.py", "data/batches.py")  # the modules that define a training
NAME = re.compile(r"step-(\d{12})-([0-9a-f]{64})\.safetensors")
KEPT = 2
ABANDONED_S = 14 * 24 * 3600  # without a new checkpoint


def training_key(
    params: Params, data_digest: str, device: torch.device, processes: int = 1, initial: Mapping[str, str] | None = None
) -> str:
    """Name of a training and its checkpoints' folder: 32 hex digits of everything that the result depends on.

    `initial`: SHA-256 by name of the files that its weights begin as, and a loss's; where they lie does not matter.
    """
    package = Path(vaeline.__file__).parent
    code = {str(path.relative_to(package)): file_digest(path) for pattern in SOURCES for path in package.glob(pattern)}
    machine = identity(device, processes, pick_precision(params.train.precision, device))
    sections = {"model": params.model.model_dump(mode="json")}
    written = params.train.model_dump(mode="json", exclude={"init": True, "perceptual": {"weights": True}})
    sections["train"] = written | {"init": initial}
    return value_digest(sections | {"data": data_digest, "code": code, "machine": machine})[:32]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and a JSON object."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def pack(checkpoint: Checkpoint) -> bytes:
    """As the content of one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    return save(tensors, {"progress": json.dumps(checkpoint.progress)})


def unpack(content: bytes) -> Checkpoint:
    """The inverse, on the CPU."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Checkpoint(load(content), json.loads(header["__metadata__"]["progress"]))


def write(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to REPOSITORY/.vaeline/checkpoints/KEY and drop all but the last two.

    Raises OSError (a full disk), or UserError where the repository was moved; then the old ones stay.
    """
    content, above = pack(checkpoint), folder.absolute().parents
    repository = above[min(2, len(above) - 1)]
    try:
        if repository.is_dir():
            write_file(folder / f"step-{step:012d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    except OSError:
        if repository.is_dir():
            raise
    if not repository.is_dir():
        raise UserError(f"{repository}: was moved or deleted; run again where it is now: training goes on from there")
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def read(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, on the CPU; None where there is none."""
    for path in _newest_first(folder):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() in path.name:
            return unpack(content)
        log.warning("%s: is damaged; going back to the checkpoint before it", path)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone (a kernel lock), waiting for one that trains the same."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process trains the same (it holds %s): waiting for it", folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if has_path(descriptor, folder):  # its last owner may have removed it
                yield
                return
        finally:
            os.close(descriptor)


def remove(folder: Path) -> None:
    """Drop every checkpoint: the training is over and its result in place."""
    shutil.rmtree(folder, ignore_errors=True)


def drop_abandoned(root: Path) -> None:
    """Remove the folders of trainings that no process holds, without a new checkpoint for two weeks."""
    for folder in root.glob("*/"):
        with suppress(FileNotFoundError, BlockingIOError):  # gone meanwhile, or at work (clocks jump): not abandoned
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > ABANDONED_S:
                    remove(folder)
            finally:
                os.close(descriptor)
