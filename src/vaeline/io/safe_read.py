"""Reading what someone else may have written: regular files of bounded size, strict JSON of bounded depth."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vaeline.errors import UserError

DEEPEST = 32  # lists and objects in each other; no JSON of ours has ten
CHUNK = 1 << 20
TOKENS = re.compile(rb'(?s)"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]')  # strings and brackets


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; a link (DVC may make them) is followed to one.

    Raises UserError, having read nothing, for another kind of file (a named pipe would wait for ever) or a larger one.
    """
    with opened(path) as (file, size):
        if size > most:
            raise UserError(f"{path}: found {size} bytes, allowed: at most {most}")
        return file.read(size)


def checked_digest(path: Path, size: int) -> str:
    """Hex SHA-256 of a regular file that is no link and has exactly `size` bytes; memory stays bounded."""
    digest = hashlib.sha256()
    with opened(path, follow=False) as (file, found):
        if found != size:
            raise UserError(f"{path}: found {found} bytes, allowed by its manifest: {size}")
        while size > 0 and (part := file.read(min(size, CHUNK))):
            digest.update(part)
            size -= len(part)
    return digest.hexdigest()


@contextmanager
def opened(path: Path, follow: bool = True) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, and its size in bytes. Raises UserError for anything else, without waiting."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: is not a regular file")
            yield file, status.st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no key twice in an object, no NaN, not deeper than any of ours. Raises UserError."""
    depth = 0
    for token in TOKENS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        if depth > DEEPEST:
            raise UserError(f"{where}: is nested deeper than {DEEPEST} levels")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except _TwiceError as error:
        raise UserError(f"{where}: key {shown(error.args[0])!r} given twice") from None
    except ValueError:
        raise UserError(f"{where}: is not JSON") from None


def shown(text: object, most: int = 120) -> str:
    """Words of a file, as they may stand in a message: short, and nothing that a terminal obeys."""
    words = str(text)
    words = words if words.isprintable() else repr(words)
    return words if len(words) <= most else words[: most - 3] + "..."


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
