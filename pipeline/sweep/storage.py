"""Optuna's storage of a sweep: a journal file, or a database for workers on several machines."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

from vaeline.errors import UserError
from vaeline.io.locks import acquire, locked
from vaeline.tracking.connection import redact

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


class _KernelLock(JournalFileOpenLock):
    """Lock that its holder's end releases; optuna's own is a file, which a killed holder leaves for 30 seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        self._descriptor = acquire(self._path)
        return True

    def release(self) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)


def open_storage(address: str) -> "BaseStorage":
    """The storage at `address`: a database's URL, else a journal file, made where it is missing. Raises UserError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" in address:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return optuna.storages.RDBStorage(address)
        except (SQLAlchemyError, ImportError) as error:
            raise UserError(f"VAELINE_SWEEP_STORAGE: {redact(address)}: {str(error).splitlines()[0]}") from None
    path = Path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with locked(lock), path.open("ab+") as file:  # a line that a full disk cut would spoil what follows
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    try:
        return JournalStorage(JournalFileBackend(address, _KernelLock(lock)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {path.parent} to start anew") from None
