"""The history as what it says of who was champion, in every order in which a crash or a person can leave it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from vaeline.registry.history import CONFIRMED, PREFIX, Action, Entry, carried_out, champions, read, rolled_back

Step = tuple[Action, str, str | None]


def entries(*steps: Step) -> list[Entry]:
    return [Entry(action, version, before, f"digest {version}") for action, version, before in steps]


FIRST, SECOND, THIRD = ("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2")
BACK: Step = ("rollback", "2", "3")


@pytest.mark.parametrize(
    ("steps", "current", "expected"),
    [
        ([], None, []),
        ([], "1", ["1"]),  # named by hand
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
        ([FIRST, ("promote", "3", "2")], "3", ["2", "3"]),  # 2 was named by hand, over 1
        ([FIRST, SECOND], "7", ["1", "7"]),  # 7 was named by hand
        ([("promote", "2", "1"), ("promote", "3", "1"), ("settle", "2", "3")], "2", ["1", "3", "2"]),
    ],
)
def test_the_champions_before_are_those_that_a_rollback_walks_back(
    steps: list[Step], current: str | None, expected: list[str]
):
    assert champions(entries(*steps), current) == expected


def test_an_entry_whose_alias_never_moved_is_known_by_what_came_after():
    told = entries(FIRST, SECOND, ("reject", "4", "1"), ("promote", "3", "1"))
    assert carried_out(told, "3") == [True, False, True, True]
    assert carried_out(told, "1") == [True, False, True, False]


def test_a_confirmed_entry_was_carried_out_whatever_somebody_did_by_hand_after_it():
    told = [replace(entry, confirmed=True) for entry in entries(FIRST, SECOND)]
    assert champions(told, "1") == ["1", "2", "1"]
    assert champions(told, None) == ["1", "2"]  # the alias was taken away
    assert champions([*told, *entries(("promote", "4", "3"))], "4") == ["1", "2", "3", "4"]


def test_a_version_is_rolled_back_until_somebody_puts_it_back():
    told = entries(FIRST, SECOND, ("rollback", "1", "2"))
    assert rolled_back(told, "1", "2") == told[2]
    assert rolled_back(told, "1", "1") is None
    assert rolled_back(told, "2", "2") is None, "it was not carried out"
    assert rolled_back([*told, *entries(("promote", "2", "1"))], "2", "2") is None


def content(**changes: Any) -> str:
    whole = {
        "time": "2026-01-01T00:00:00.000+00:00",
        "action": "promote",
        "version": "1",
        "from": None,
        "digest": "d",
        "reasons": ["because"],
        "numbers": {"gain": 1},
        "who": "me",
        "forced": False,
        "reason": "",
    }
    return json.dumps(whole | changes)


def test_entries_are_read_in_the_order_of_their_times_and_what_is_none_is_left_out():
    tags = {
        f"{PREFIX}1000-aa": content(version="10"),
        f"{PREFIX}999-ff": content(version="9"),
        f"{PREFIX}998-ff": content(action="dance"),
        f"{PREFIX}997-ff": "{",
        f"{PREFIX}996-ff": "[]",
        f"{CONFIRMED}1000-aa": "true",
        "vaeline.other": "x",
    }
    assert [(entry.version, entry.confirmed) for entry in read(tags)] == [("9", False), ("10", True)]
    assert read(tags)[0].numbers == {"gain": 1.0}
