"""The name of a training: a digest of everything that its result depends on."""

from pathlib import Path

import torch

import vaeline
from vaeline.config import Params
from vaeline.io.digests import file_digest, value_digest
from vaeline.training.device import identity

SOURCES = ("core/*.py", "training/*.py", "data/batches.py")


def training_key(params: Params, data_digest: str, device: torch.device, processes: int = 1) -> str:
    """32 hex digits of the params, the data, the code, PyTorch, the devices, their precision and the threads."""
    return value_digest(
        {
            "model": params.model.model_dump(mode="json"),
            "train": params.train.model_dump(mode="json"),
            "data": data_digest,
            "code": code_digest(),
            "machine": identity(device, processes),
        }
    )[:32]


def code_digest() -> str:
    """SHA-256 of the modules that define a training."""
    package = Path(vaeline.__file__).parent
    files = [path for pattern in SOURCES for path in package.glob(pattern)]
    return value_digest({str(path.relative_to(package)): file_digest(path) for path in files})
