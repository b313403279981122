"""Reading what someone else may have written: regular files of bounded size, strict JSON of bounded depth."""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from vaeline.errors import UserError

DEEPEST = 32  # lists and objects in each other; no JSON of ours has ten
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
TOKENS = re.compile(rb'(?s)"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]')  # strings and brackets


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; a link (DVC may make them) is followed to one.

    Raises UserError, having read nothing, for another kind of file (a named pipe would wait for ever) or a larger one.
    """
    with opened(path) as (file, size):
        if size > most:
            raise UserError(f"{named(path)}: found {size} bytes, allowed: at most {most}")
        return file.read(size)


def checked_digest(path: Path, size: int) -> str:
    """Hex SHA-256 of a regular file that is no link and has exactly `size` bytes; memory stays bounded."""
    with opened(path, follow=False) as (file, found):
        if found != size:
            raise UserError(f"{path}: found {found} bytes, allowed by its manifest: {size}")
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(path: Path, follow: bool = True) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, open for reading, and its size in bytes. Raises UserError for anything else, without waiting."""
    if "\0" in str(path):
        raise UserError(f"{named(path)}: cannot be read: a path has no null character")
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{named(path)}: is not a regular file")
            yield file, status.st_size
    except OSError as error:
        if error.errno in FULL_DISK:  # of what the block writes
            raise
        raise UserError(f"{named(path)}: cannot be read: {error.strerror or error}") from None


@contextmanager
def readable() -> Iterator[None]:
    """Raise UserError for files that are another user's, or are gone since they were listed."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{named(Path(error.filename))}: cannot be read: {error.strerror}") from None


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no key twice in an object, all numbers finite, not deeper than any of ours.

    Raises UserError.
    """
    depth = 0
    for token in TOKENS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        if depth > DEEPEST:
            raise UserError(f"{where}: is nested deeper than {DEEPEST} levels")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UserError(f"{where}: key {shown(key)!r} given twice")
        return dict(pairs)

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(text)
        return number

    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except ValueError:
        raise UserError(f"{where}: is not JSON") from None


def named(path: os.PathLike[str]) -> str:
    """A path as it may stand in a message, whatever bytes it has."""
    return shown(os.fspath(path), most=300)


def shown(text: object, most: int = 120) -> str:
    """Words of a file, as they may stand in a message: short, and nothing that a terminal obeys."""
    words = str(text)
    words = words if words.isprintable() else repr(words)
    return words if len(words) <= most else words[: most - 3] + "..."
