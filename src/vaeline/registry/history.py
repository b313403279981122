"""Who was champion, why, and by whom: entries on the registered model that are only ever added.

An entry is a tag `vaeline.history.<ms>-<random>` with a JSON value, so that writers never overwrite each other. It is
written before the alias moves, and confirmed by a tag `vaeline.carried_out.<ms>-<random>` after; where a crash came in
between, the alias itself tells, or the next entry, which says from which champion it started.
"""

import json
import logging
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from vaeline.tracking.provenance import user

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX, CONFIRMED = "vaeline.history.", "vaeline.carried_out."
# settle: of several that were promoted at once, the one that the gate prefers
Action = Literal["promote", "reject", "rollback", "settle"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the history."""

    action: Action
    version: str  # that was judged, or is champion from here on
    before: str | None  # the champion's version until then; "from" in JSON
    digest: str  # of the model
    reasons: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    forced: bool = False
    reason: str = ""  # that a person gave
    who: str = ""
    time: str = ""  # ISO 8601, UTC
    key: str = ""  # of the tag
    confirmed: bool = False  # that the alias moved

    @property
    def by_hand(self) -> bool:
        """Whether a person decided, not the gate."""
        return self.forced or self.action == "rollback"

    @property
    def moves(self) -> bool:
        """Whether it makes its version the champion."""
        return self.action != "reject"

    @property
    def milliseconds(self) -> int:
        """Since 1970."""
        return _order(self.key)[0]

    def same(self, other: "Entry") -> bool:
        """Whether it says what another one says, but for when and by whom."""
        mine, others = (replace(entry, who="", time="", key="", confirmed=False) for entry in (self, other))
        return mine == others


def read(tags: Mapping[str, str]) -> list[Entry]:
    """The entries among a registered model's tags, in order; what is no entry is told and left out."""
    keys = sorted((key for key in tags if key.startswith(PREFIX)), key=_order)
    found = [(_parse(key, tags[key]), key.replace(PREFIX, CONFIRMED, 1) in tags) for key in keys]
    return [replace(entry, confirmed=confirmed) for entry, confirmed in found if entry is not None]


def record(client: "MlflowClient", name: str, entry: Entry) -> str:
    """Add an entry, unless it is there from a run that was cut short; returns its key.

    Its time is later than all before it, whatever this machine's clock says.
    """
    entries = read(client.get_registered_model(name).tags)
    if (done := _repeated(entries, entry)) is not None:
        return done.key
    latest = entries[-1].milliseconds if entries else 0
    now = max(time.time_ns() // 1_000_000, latest + 1)
    key = f"{PREFIX}{now}-{secrets.token_hex(4)}"
    content = {
        "time": datetime.fromtimestamp(now / 1000, UTC).isoformat(timespec="milliseconds"),
        "action": entry.action,
        "version": entry.version,
        "from": entry.before,
        "digest": entry.digest,
        "reasons": list(entry.reasons),
        "numbers": dict(entry.numbers),
        "who": f"{user()}@{socket.gethostname()}",
        "forced": entry.forced,
        "reason": entry.reason,
    }
    client.set_registered_model_tag(name, key, json.dumps(content, allow_nan=False))
    return key


def confirm(client: "MlflowClient", name: str, key: str) -> None:
    """Note that the alias moved as the entry says."""
    client.set_registered_model_tag(name, key.replace(PREFIX, CONFIRMED, 1), "true")


def carried_out(entries: Sequence[Entry], current: str | None) -> list[bool]:
    """Which entries came to pass: those confirmed; else a move where the next one started from its version, or, of
    the last one, its version is champion now.
    """
    done, after = [], current
    for entry in reversed(entries):
        done.append(not entry.moves or entry.confirmed or after == entry.version)
        after = entry.before if entry.moves else after
    return done[::-1]


def champions(entries: Sequence[Entry], current: str | None) -> list[str]:
    """The champions that a rollback walks back, oldest first; the last one is or (alias gone) was the present one.

    A rollback takes what it went back over off the list; a champion that was named by hand is on it as well.
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


def rolled_back(entries: Sequence[Entry], current: str | None, version: str) -> Entry | None:
    """The rollback that took this version down, where nobody has put it back since."""
    latest = None
    for entry, done in zip(entries, carried_out(entries, current), strict=True):
        if done and entry.action == "rollback" and entry.before == version:
            latest = entry
        elif done and entry.moves and entry.version == version:
            latest = None
    return latest


def _repeated(entries: Sequence[Entry], entry: Entry) -> Entry | None:
    """The entry that a repetition would add again: the last move, or the last word on the rejected version."""
    alike = [e for e in entries if (e.moves if entry.moves else e.version == entry.version)]
    return alike[-1] if alike and alike[-1].same(entry) and not alike[-1].confirmed else None


def _order(key: str) -> tuple[int, str]:
    """By time; the random part only makes the order one for all readers."""
    moment = key.removeprefix(PREFIX).partition("-")[0]
    return int(moment) if moment.isascii() and moment.isdigit() else 0, key


def _parse(key: str, value: str) -> Entry | None:
    try:
        content: dict[str, Any] = json.loads(value)
        if content["action"] not in get_args(Action):
            raise ValueError(content["action"])
        return Entry(
            action=content["action"],
            version=str(content["version"]),
            before=None if content["from"] is None else str(content["from"]),
            digest=str(content["digest"]),
            reasons=tuple(map(str, content["reasons"])),
            numbers={name: float(number) for name, number in content["numbers"].items()},
            forced=bool(content["forced"]),
            reason=str(content["reason"]),
            who=str(content["who"]),
            time=str(content["time"]),
            key=key,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("the tag %s is no entry of the history", key)
        return None
