"""Checkpoints: safetensors and JSON in one file whose name holds its SHA-256. Nothing is ever unpickled.

A file is written beside the others under a temporary name, synced, renamed, and the folder synced: a crash leaves
the old ones and nothing half-written that counts. The last two are kept; a damaged one is passed over.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from vaeline.io.atomic_write import write_file
from vaeline.io.locks import has_path

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{12})-([0-9a-f]{64})\.safetensors")
KEPT = 2
ABANDONED_S = 14 * 24 * 3600  # without a new checkpoint


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
    """Add a checkpoint and drop all but the last two. Raises OSError (a full disk); then the old ones stay."""
    content = pack(checkpoint)
    path = folder / f"step-{step:012d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    write_file(path, content)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def read(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, on the CPU; None where there is none."""
    for path in _newest_first(folder):
        match, content = NAME.fullmatch(path.name), path.read_bytes()
        if match and hashlib.sha256(content).hexdigest() == match[2]:
            return unpack(content)
        log.warning("%s: is damaged; going back to the checkpoint before it", path)
    return None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone, waiting for one that trains the same (a kernel lock, see `io.locks`)."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, folder)
            if has_path(descriptor, folder):  # its last owner may have removed it
                yield
                return
        finally:
            os.close(descriptor)


def remove(folder: Path) -> None:
    """Drop every checkpoint: the training is over and its result in place."""
    shutil.rmtree(folder, ignore_errors=True)


def drop_abandoned(root: Path) -> None:
    """Remove the folders of trainings without a new checkpoint for two weeks that no process holds."""
    for folder in root.glob("*/"):
        with suppress(FileNotFoundError, BlockingIOError):  # another training at work there: it is not abandoned
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > ABANDONED_S:
                _remove_free(folder)


def _remove_free(folder: Path) -> None:
    """Remove a folder that no process holds. Raises BlockingIOError where one does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process trains the same (it holds %s): waiting for it", folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)
