"""Claim: one statement of the theory with its equation, words, numbers, table and pictures, all as data."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.plotting.charts import Picture

FILE = "claims.json"  # in reports/theory, beside the pictures that it names


@dataclass(frozen=True)
class Table:
    """Rows of plain text below a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Claim:
    """One statement; all text is plain, `numbers` is its part of reports/theory.json."""

    key: str
    title: str
    equation: str
    words: tuple[str, ...] = ()  # paragraphs
    numbers: dict[str, Any] = field(default_factory=dict)
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()


def numbers_file(claims: Sequence[Claim]) -> bytes:
    """reports/theory.json: the numbers of each claim by its key, null where one is not finite."""
    content = {claim.key: finite({"applies": bool(claim.numbers), **claim.numbers}) for claim in claims}
    return _json(content)


def theory_files(claims: Sequence[Claim]) -> dict[str, bytes]:
    """reports/theory: claims.json with everything but the numbers, and the pictures, by name."""
    content = [
        {
            "key": claim.key,
            "title": claim.title,
            "equation": claim.equation,
            "words": claim.words,
            "table": claim.table and {"header": claim.table.header, "rows": claim.table.rows},
            "pictures": [{"name": picture.name, "caption": picture.caption} for picture in claim.pictures],
        }
        for claim in claims
    ]
    return {FILE: _json(content)} | {f"{p.name}.png": p.png for claim in claims for p in claim.pictures}


def read_claims(folder: Path) -> list[Claim]:
    """The claims of reports/theory, without their numbers. Raises UserError where a file is missing or damaged."""
    path = folder / FILE
    try:
        return [_read(section, folder) for section in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}; run the stage theory") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what the stage theory writes; run it again") from None


def _read(section: dict[str, Any], folder: Path) -> Claim:
    table = section["table"]
    return Claim(
        section["key"],
        section["title"],
        section["equation"],
        tuple(section["words"]),
        {},
        Table(tuple(table["header"]), tuple(map(tuple, table["rows"]))) if table else None,
        tuple(Picture(**p, png=(folder / f"{p['name']}.png").read_bytes()) for p in section["pictures"]),
    )


def finite(value: Any) -> Any:
    """The same numbers with None for what JSON has no number for."""
    match value:
        case dict():
            return {key: finite(part) for key, part in value.items()}
        case list():
            return [finite(part) for part in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
