"""SHA-256 digests of files, of several files together, and of plain values."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a JSON-serialisable mapping, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(folder: Path) -> str:
    """The model's identity: the digest of the digests of `model.safetensors` and `config.json`."""
    return value_digest({name: file_digest(folder / name) for name in ("model.safetensors", "config.json")})
