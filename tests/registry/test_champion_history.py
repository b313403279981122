"""The history of champions in every order in which a crash or a person can leave it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from vaeline.registry.champion_history import (
    CARRIED_OUT,
    PREFIX,
    Action,
    Entry,
    carried_out,
    champions,
    is_rolled_back,
    read,
)

Step = tuple[Action, str, str | None]


def entries(*steps: Step) -> list[Entry]:
    return [Entry(action, version, before, f"digest {version}") for action, version, before in steps]


FIRST, SECOND, THIRD = ("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2")
BACK: Step = ("rollback", "2", "3")


@pytest.mark.parametrize(
    ("steps", "current", "expected"),
    [
        ([], None, []),
        ([], "1", ["1"]),  # set by hand
        ([FIRST], "1", ["1"]),
        ([FIRST, SECOND, THIRD], "3", ["1", "2", "3"]),
        ([FIRST, ("reject", "2", "1")], "1", ["1"]),
        ([FIRST, SECOND], "1", ["1"]),  # a crash before the alias moved
        ([FIRST, SECOND, ("promote", "3", "1")], "3", ["1", "3"]),
        ([FIRST, SECOND, THIRD, BACK], "2", ["1", "2"]),
        ([FIRST, SECOND, THIRD, BACK], "3", ["1", "2", "3"]),
        ([FIRST, SECOND, THIRD, BACK, ("rollback", "1", "2")], "1", ["1"]),
        ([FIRST, SECOND, THIRD, BACK, ("promote", "4", "2")], "4", ["1", "2", "4"]),
        ([FIRST, SECOND, ("promote", "1", "2")], "1", ["1", "2", "1"]),  # forced back, not rolled back
        ([FIRST, SECOND, ("promote", "1", "2"), ("rollback", "2", "1")], "2", ["1", "2"]),
        ([FIRST, ("promote", "3", "2")], "3", ["2", "3"]),  # 2 was set by hand, over 1
        ([FIRST, SECOND], "7", ["1", "7"]),  # 7 was set by hand
        ([("promote", "2", "1"), ("promote", "3", "1")], "3", ["1", "3"]),  # by two machines at once
    ],
)
def test_a_rollback_walks_back_the_champions_before(steps: list[Step], current: str | None, expected: list[str]):
    assert champions(entries(*steps), current) == expected


def test_an_entry_took_effect_if_it_was_confirmed_or_what_came_after_shows_it():
    found = entries(FIRST, SECOND, ("reject", "4", "1"), ("promote", "3", "1"))
    assert carried_out(found, "3") == [True, False, True, True]
    assert carried_out(found, "1") == [True, False, True, False]
    found = [replace(entry, confirmed=True) for entry in entries(FIRST, SECOND)]
    assert champions(found, "1") == ["1", "2", "1"]
    assert champions(found, None) == ["1", "2"]  # the alias was taken away
    assert champions([*found, *entries(("promote", "4", "3"))], "4") == ["1", "2", "3", "4"]


def test_a_version_is_rolled_back_until_it_is_made_champion_again():
    found = entries(FIRST, SECOND, ("rollback", "1", "2"))
    assert is_rolled_back(found, "1", "2")
    assert not is_rolled_back(found, "1", "1")
    assert not is_rolled_back(found, "2", "2"), "it was not carried out"
    assert not is_rolled_back([*found, *entries(("promote", "2", "1"))], "2", "2")


def content(**changes: Any) -> str:
    texts = {"time": "2026-01-01T00:00:00.000+00:00", "action": "promote", "digest": "d", "who": "me", "reason": ""}
    return json.dumps(texts | {"from": None, "reasons": ["because"], "numbers": {"gain": 1}, "forced": False} | changes)


def test_entries_are_read_in_the_order_of_their_times_and_other_tags_are_skipped():
    tags = {
        f"{PREFIX}1000-aa": content(version="10"),
        f"{PREFIX}999-ff": f"2026-01-01 00:00 promote version 9\n{content(version='9')}",
        f"{PREFIX}998-ff": content(action="dance"),
        **{f"{PREFIX}99{i}-ee": content(version=odd) for i, odd in enumerate(("../1", "0", "1\n", "\u0661", "9" * 10))},
        f"{PREFIX}997-ff": "{",
        f"{PREFIX}996-ff": "[]",
        f"{CARRIED_OUT}1000-aa": "true",
        "vaeline.other": "x",
    }
    assert [(entry.version, entry.confirmed) for entry in read(tags)] == [("9", False), ("10", True)]
    assert read(tags)[0].numbers == {"gain": 1.0}
