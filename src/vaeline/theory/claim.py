"""Claim: one statement of the theory with its equation, words, numbers, table and pictures, all as data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.plotting.charts import Picture

FILE = "claims.json"  # in reports/theory, beside the pictures that it names


@dataclass(frozen=True)
class Claim:
    """One statement; all text is plain, `numbers` is its part of reports/theory.json."""

    key: str
    title: str
    equation: str
    words: Sequence[str] = ()  # paragraphs
    numbers: dict[str, Any] = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()  # the header first
    pictures: Sequence[Picture] = ()


def numbers_file(claims: Sequence[Claim]) -> bytes:
    """reports/theory.json: the numbers of each claim by its key, null where one is not finite."""
    content = {claim.key: {"applies": bool(claim.numbers), **claim.numbers} for claim in claims}
    return _json(json.loads(json.dumps(content), parse_constant=lambda _: None))


def theory_files(claims: Sequence[Claim]) -> dict[str, bytes]:
    """reports/theory: claims.json with everything but the numbers, and the pictures, by name."""
    content = []
    for claim in claims:
        table = {"header": claim.table[0], "rows": claim.table[1:]} if claim.table else None
        pictures = [{"name": picture.name, "caption": picture.caption} for picture in claim.pictures]
        section = vars(claim) | {"table": table, "pictures": pictures}
        content.append({key: value for key, value in section.items() if key != "numbers"})
    return {FILE: _json(content)} | {f"{p.name}.png": p.png for claim in claims for p in claim.pictures}


def read_claims(folder: Path) -> list[dict[str, Any]]:
    """Content of claims.json in reports/theory, its pictures with their `png`.

    Raises UserError where a file is missing or damaged.
    """
    path = folder / FILE
    try:
        claims: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for picture in (picture for claim in claims for picture in claim["pictures"]):
            picture["png"] = (folder / f"{picture['name']}.png").read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}; run the stage theory") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what the stage theory writes; run it again") from None
    return claims


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
