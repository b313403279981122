"""Writing files so that a crash leaves the old content or the new one, never a part."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, sync, rename, sync the folder (made where it is missing).

    Raises OSError (a full disk); then the old content stays and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_parts(folder: Path) -> None:
    """Remove what killed writers left in a folder that the caller alone writes to."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
