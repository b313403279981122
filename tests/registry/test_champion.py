"""The alias champion under crashes, races, damage and changes by hand: real versions in a real sqlite registry."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vaeline.errors import UserError
from vaeline.registry.champion import contest
from vaeline.registry.operations import promote_by_force, promote_by_gate, rollback
from vaeline.registry.stored import load_version, smoke_test

if TYPE_CHECKING:
    from filled_registry import Shelf

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow, of its own classes
]
SLOW = pytest.mark.slow
NAME = "vaeline-fashion-mnist"
WRITES = (
    "set_model_version_tag",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


class Disturbed:
    """A client that does something else before its n-th write, counted from 0."""

    def __init__(self, client: Any, at: int, disturb: Callable[[], None]) -> None:
        self.client, self.at, self.disturb, self.writes = client, at, disturb, 0

    def __getattr__(self, name: str) -> Any:
        if name in WRITES:
            self.writes += 1
            if self.writes == self.at + 1:
                self.disturb()
        return getattr(self.client, name)


class Killed(BaseException):
    """Nothing that anybody handles."""


def kill() -> None:
    raise Killed


def test_each_better_version_takes_the_place_and_the_history_tells_all(shelf: "Shelf"):
    assert [shelf.contest(number).promote for number in (2, 1, 3)] == [True, False, True]
    assert shelf.aliases() == {"champion": "3", "challenger": "1"}
    assert shelf.history() == [("promote", "2", None), ("reject", "1", "2"), ("promote", "3", "2")]
    gate = json.loads(shelf.tags(3)["vaeline.gate"])
    assert gate["gain_lower"] > gate["margin"] == 0.1


@pytest.mark.parametrize("better", [True, pytest.param(False, marks=SLOW)])
def test_a_crash_between_any_two_steps_keeps_a_champion_and_a_repetition_finishes(shelf: "Shelf", better: bool):
    """Before each write in turn; once the alias has moved only the confirmation is left."""
    number = 3 if better else 1
    for at in itertools.count():
        database = Path(".vaeline/mlflow.db").read_bytes()
        shelf.contest(2)
        before = shelf.history()
        client = Disturbed(shelf.client, at, kill)
        try:
            shelf.contest(number, client)
        except Killed:
            moved = better and client.at == 5
            assert shelf.aliases()["champion"] == ("3" if moved else "2")
            if not moved:
                shelf.contest(number)
        assert shelf.aliases() == ({"champion": "3"} if better else {"champion": "2", "challenger": "1"})
        assert shelf.history() == [*before, ("promote", "3", "2") if better else ("reject", "1", "2")]
        assert shelf.tags(number)["vaeline.decision"] == ("promoted" if better else "rejected")
        if client.writes <= at:
            break
        Path(".vaeline/mlflow.db").write_bytes(database)
    assert at == (6 if better else 5)


@pytest.mark.parametrize(("mine", "theirs"), [(3, 4), *(pytest.param(*pair, marks=SLOW) for pair in ((4, 3), (3, 1)))])
def test_another_machine_that_promotes_between_any_two_steps_changes_no_outcome(shelf: "Shelf", mine: int, theirs: int):
    """No lock holds between machines: the other one's whole promotion happens before each of our writes in turn."""
    for at in itertools.count():
        database = Path(".vaeline/mlflow.db").read_bytes()
        shelf.contest(2)
        client = Disturbed(shelf.client, at, lambda: shelf.contest(theirs) and None)
        shelf.contest(mine, client)
        if client.writes <= at:
            break
        best = str(max(mine, theirs))
        assert shelf.aliases()["champion"] == best, f"before write {at}"
        assert shelf.tags(int(best))["vaeline.decision"] == "promoted"
        moves = [version for action, version, _ in shelf.history() if action != "reject"]
        assert moves[-1] == best, f"before write {at}: {shelf.history()}"
        Path(".vaeline/mlflow.db").write_bytes(database)
    assert at >= 6


def test_a_rollback_on_another_machine_wins_over_the_gate(shelf: "Shelf"):
    shelf.contest(1)
    shelf.contest(2)
    shelf.contest(3, Disturbed(shelf.client, 4, lambda: rollback(shelf.client, NAME) and None))
    assert shelf.aliases()["champion"] == "1"
    assert shelf.history()[-1] == ("settle", "1", "3")


def test_rollback_walks_back_and_over_deleted_versions_and_ends_in_one_line(
    shelf: "Shelf", monkeypatch: pytest.MonkeyPatch
):
    for number in (1, 2, 3, 4):
        shelf.contest(number)
    shelf.client.delete_model_version(NAME, "2")
    assert rollback(shelf.client, NAME, "it hallucinates") == ("4", "3")
    assert rollback(shelf.client, NAME) == ("3", "1")
    with pytest.raises(UserError, match="version 1 is champion and no champion before it is left"):
        rollback(shelf.client, NAME)
    assert shelf.aliases() == {"champion": "1"}
    assert shelf.history()[-2:] == [("rollback", "3", "4"), ("rollback", "1", "3")]


def test_what_was_rolled_back_comes_back_by_a_person_only(shelf: "Shelf"):
    shelf.contest(1)
    shelf.contest(3)
    rollback(shelf.client, NAME)
    again = shelf.contest(3)
    assert not again.promote
    assert "it was rolled back" in again.reasons[0]
    assert shelf.contest(2).promote, "another one is judged as ever"
    assert promote_by_gate(shelf.client, NAME, 3, shelf.trial) is not None
    assert shelf.aliases()["champion"] == "3"


def test_a_damaged_champion_is_told_with_the_way_out_which_works(shelf: "Shelf"):
    shelf.contest(2)
    weights = shelf.weights(2)
    whole = weights.read_bytes()
    try:
        for damage in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            weights.unlink() if damage is None else weights.write_bytes(damage)
            decision = shelf.contest(3)
            assert not decision.promote
            assert decision.reasons[0].startswith("not compared: the champion cannot be read: ")
            assert "--force --reason TEXT" in decision.reasons[0]
            assert str(weights.parent) not in decision.reasons[0]
        assert promote_by_force(shelf.client, NAME, 3, "the champion is damaged") is not None
        assert shelf.aliases()["champion"] == "3"
        with pytest.raises(UserError, match="version 2, the champion before, does not load and predict: "):
            rollback(shelf.client, NAME)
    finally:
        weights.write_bytes(whole)


def test_a_store_that_is_away_is_not_taken_for_a_damaged_champion(shelf: "Shelf"):
    shelf.contest(2)
    version = shelf.client.get_model_version(NAME, "2")
    weights = shelf.weights(2)
    whole = weights.read_bytes()

    class Away:
        def get_model_version(self, name: str, version: str) -> None:
            raise ConnectionError

    try:
        weights.unlink()
        with pytest.raises(ConnectionError):
            load_version(Away(), version)  # type: ignore[arg-type]
    finally:
        weights.write_bytes(whole)


def test_a_deleted_champion_leaves_the_place_to_the_next_sound_model(shelf: "Shelf"):
    shelf.contest(3)
    shelf.client.delete_model_version(NAME, "3")
    assert shelf.contest(1).reasons == ("no champion before it",)
    assert shelf.aliases() == {"champion": "1"}


def test_a_champion_named_by_hand_and_without_tags_is_compared_by_its_stored_model(shelf: "Shelf"):
    source = shelf.client.get_model_version(NAME, "3").source
    by_hand = shelf.client.create_model_version(NAME, source)
    shelf.client.set_registered_model_alias(NAME, "champion", by_hand.version)
    assert shelf.contest(2).reasons[0].startswith("gain -")
    assert shelf.contest(3).reasons == ("it is the champion already",)
    assert shelf.contest(4).promote
    assert shelf.history()[-1] == ("promote", "4", str(by_hand.version))


def test_the_artifact_must_load_and_predict_in_a_fresh_process(shelf: "Shelf"):
    """A model whose own code is broken passes every number, but nobody could use it."""
    code = next(shelf.weights(4).parents[2].rglob("code/vaeline/serving/model_files.py"))
    whole = code.read_bytes()
    trial = replace(shelf.trial, smoke_test=smoke_test)
    version = shelf.client.get_model_version(NAME, "4")
    challenger = trial.contender(load_version(shelf.client, version))
    try:
        code.write_bytes(b"raise RuntimeError('no such thing')\n")
        decision = contest(shelf.client, version, challenger, trial)
    finally:
        code.write_bytes(whole)
    (reason,) = decision.reasons
    assert reason.startswith("does not load and predict in a fresh process: ")
    assert "no such thing" in reason
    assert shelf.aliases() == {"challenger": "4"}
    assert shelf.contest(4, trial=trial).promote
    assert smoke_test(shelf.client.get_model_version(NAME, "4"), seconds=1) == "no answer within 1 s"
