"""History of a registered model's champions: entries as tags on the model, never changed.

An entry is a tag `vaeline.history.<ms>-<random>`: a line for people, then JSON. It is written before the alias moves;
a tag `vaeline.carried_out.<ms>-<random>` is written after. Where a crash came between the two, the current champion or
the next entry, which names the champion before it, shows whether the alias moved.
"""

import json
import logging
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json
from vaeline.registry.versions import CHAMPION
from vaeline.tracking.provenance import user

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

PREFIX, CARRIED_OUT = "vaeline.history.", "vaeline.carried_out."
WORDS = {"before": "from", "user": "who"}  # fields -> keys in JSON
Action = Literal["promote", "reject", "rollback"]
Number = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]  # of a version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One decision. Entries are equal that differ only in when and by whom they were written."""

    action: Action
    version: Number  # that was rejected, or is champion from here on
    before: Number | None  # champion until then
    digest: str  # of the model
    reasons: tuple[str, ...] = ()
    numbers: dict[str, int | float] = field(default_factory=dict)
    forced: bool = False
    reason: str = ""  # given by a person
    user: str = field(default="", compare=False)
    time: str = field(default="", compare=False)  # ISO 8601, UTC
    key: str = field(default="", compare=False)  # of the tag
    confirmed: bool = field(default=False, compare=False)  # the alias moved

    @property
    def moves(self) -> bool:
        """Whether it makes its version the champion."""
        return self.action != "reject"


def read(tags: Mapping[str, str]) -> list[Entry]:
    """Entries among a registered model's tags, by time, then key; logs a warning for tags that are none."""
    found = []
    for key in sorted((key for key in tags if key.startswith(PREFIX)), key=lambda key: (_time(key), key)):
        try:
            content = parse_json(tags[key].rpartition("\n")[2].encode(), key)
            fields = {name: content.pop(word) for name, word in WORDS.items()} | content
            found.append(Entry(**fields, key=key, confirmed=key.replace(PREFIX, CARRIED_OUT, 1) in tags))
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("the tag %r is not an entry of the history", key)
    return found


def read_history(model: "RegisteredModel") -> list[tuple[Entry, bool]]:
    """Entries in order, and whether each took effect."""
    entries = read(model.tags)
    return list(zip(entries, carried_out(entries, model.aliases.get(CHAMPION)), strict=True))


def record(client: "MlflowClient", name: str, entry: Entry) -> str:
    """Add an entry, later than all others, and return its key; an equal one of an interrupted run is used again."""
    entries = read(client.get_registered_model(name).tags)
    alike = [old for old in entries if (old.moves if entry.moves else old.version == entry.version)]
    if alike and alike[-1] == entry and not alike[-1].confirmed:
        return alike[-1].key
    now = max(time.time_ns() // 1_000_000, _time(entries[-1].key) + 1 if entries else 0)
    key = f"{PREFIX}{now}-{secrets.token_hex(4)}"
    moment = datetime.fromtimestamp(now / 1000, UTC).isoformat(timespec="milliseconds")
    content = asdict(replace(entry, time=moment, user=f"{user()}@{socket.gethostname()}"))
    content |= {word: content.pop(name) for name, word in WORDS.items()}
    del content["key"], content["confirmed"]
    line = f"{moment[:16].replace('T', ' ')} {entry.action} version {entry.version}"
    line += f", champion before: version {entry.before}" if entry.before else ""
    client.set_registered_model_tag(name, key, f"{line}\n{json.dumps(content, allow_nan=False)}")
    return key


def carried_out(entries: Sequence[Entry], current: str | None) -> list[bool]:
    """Whether each entry took effect: confirmed, or the champion that the next entry or the alias names."""
    done, after = [], current
    for entry in reversed(entries):
        done.append(not entry.moves or entry.confirmed or after == entry.version)
        after = entry.before if entry.moves else after
    return done[::-1]


def champions(entries: Sequence[Entry], current: str | None) -> list[str]:
    """Champions that a rollback walks back, oldest first, ending with the current one (or the last, without alias).

    A rollback removes the versions that it skipped; a champion that was set by hand is in the list as well.
    """
    found: list[str] = []
    for entry, done in zip(entries, carried_out(entries, current), strict=True):
        if not entry.moves or not done:
            continue
        if entry.before is not None and found[-1:] != [entry.before]:
            found.append(entry.before)
        if entry.action == "rollback" and entry.version in found:
            del found[len(found) - found[::-1].index(entry.version) :]
        elif found[-1:] != [entry.version]:
            found.append(entry.version)
    return found + ([current] if current is not None and found[-1:] != [current] else [])


def is_rolled_back(entries: Sequence[Entry], current: str | None, version: str) -> bool:
    """Whether a rollback replaced this version and it was not made champion again since."""
    moves = [e for e, done in zip(entries, carried_out(entries, current), strict=True) if done and e.moves]
    away = [e for e in moves if e.version == version or (e.action == "rollback" and e.before == version)]
    return bool(away) and away[-1].version != version


def _time(key: str) -> int:
    moment = key.removeprefix(PREFIX).partition("-")[0]
    return int(moment) if moment.isascii() and moment.isdigit() and len(moment) < 15 else 0  # ms since the epoch
