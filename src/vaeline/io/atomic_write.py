"""Files and folders written so that a crash leaves the old content or the new one, never a part.

A file is written under a hidden name beside its own, synced, renamed, and its folder synced.
"""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART = re.compile(r"\..+\.(\d{1,9})-\d+\.part")  # the numbers: of the process and the thread that write it


def write_file(path: Path, content: bytes) -> None:
    """Write one file and make its folder. Raises OSError, naming the file (a full disk); the old content then stays."""
    write_files({path: content})


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: where one of them cannot be written, all old ones stay. Raises OSError."""
    for path in files:  # a folder cannot be replaced, and a device is not to be
        if path.exists() and not path.is_file():
            kind = "directory" if path.is_dir() else "device"
            raise OSError(errno.EISDIR if path.is_dir() else errno.ENODEV, f"Is a {kind}", str(path))
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.part") for path in files}
    try:
        for path, content in files.items():
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                for part in path.parent.glob(".*.part"):
                    if (match := PART.fullmatch(part.name)) and not _runs(int(match[1])):
                        part.unlink(missing_ok=True)  # its writer was killed
                with new_file(parts[path]) as file:
                    file.write(content)
        try:
            for path, part in parts.items():
                with _naming(path):
                    part.replace(path)
        except (KeyboardInterrupt, SystemExit):  # a signal between two renames leaves both files new
            for path, part in parts.items():
                with suppress(FileNotFoundError):
                    part.replace(path)
            raise
    except BaseException as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
        if isinstance(error, FileNotFoundError):  # as in /proc
            raise PermissionError(errno.EACCES, "Nothing can be written there", str(path)) from None
        raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of these files in place of the one that was there. Raises OSError; then the old one stays."""
    with new_folder(folder) as new:
        for name, content in files.items():
            with new_file(new / name) as file:
                file.write(content)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends, or is removed when the block raises.

    Its hidden name is fixed, so that the next writer removes what a killed one left: one process at a time may write.
    A link stays, and leads to the new folder. Raises OSError where something else than a folder has the name.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Is no folder", str(folder))
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    _restore(old, folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with _naming(folder):
        new.mkdir(parents=True)
        try:
            yield new
            _sync_folder(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            _sync_folder(folder.parent)
        except BaseException:
            _restore(old, folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file of a folder that is not in place yet, open for writing; synced when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _restore(old: Path, folder: Path) -> None:
    """Undo the first of two renames where the second did not happen."""
    if old.exists() and not folder.exists():
        old.rename(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file or folder in an OSError: the error of a write has no name, that of an open the hidden one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not PART.fullmatch(Path(error.filename).name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
