"""The alias champion under crashes, other machines, damage and changes by hand: real versions in an sqlite registry."""

import itertools
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from interrupted_client import InterruptedClient
from model_sections import saved, section
from registry_fixture import NAME, FilledRegistry
from vaeline.errors import TransientError, UserError
from vaeline.io.locks import acquire
from vaeline.registry.champion import promote, registry_lock

WRITES = ("set_", "delete_")


def kill() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("better", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_crash_between_any_two_steps_keeps_a_champion_and_a_repetition_finishes(filled: FilledRegistry, better: bool):
    """Before each write in turn; once the alias has moved only the confirmation is left."""
    number = 3 if better else 1
    for at in itertools.count(1):
        database = Path(".vaeline/mlflow.db").read_bytes()
        filled.run_gate(2)
        before = filled.history()
        client = InterruptedClient(filled.client, at, kill, counted=WRITES)
        try:
            filled.run_gate(number, client)
        except KeyboardInterrupt:
            moved = better and at == 6
            assert filled.aliases()["champion"] == ("3" if moved else "2")
            if not moved:
                filled.run_gate(number)
        assert filled.aliases() == ({"champion": "3"} if better else {"champion": "2", "challenger": "1"})
        assert filled.history() == [*before, ("promote", "3", "2") if better else ("reject", "1", "2")]
        assert filled.tags(number)["vaeline.decision"] == ("promoted" if better else "rejected")
        if client.calls < at:
            break
        Path(".vaeline/mlflow.db").write_bytes(database)
    assert at == (7 if better else 6)


def test_a_champion_that_another_machine_changed_during_the_gate_ends_the_promotion(filled: FilledRegistry):
    """Mistake 17: a decision on a champion of the past. No lock holds between machines."""
    filled.run_gate(1)
    scored: list[Any] = []

    def slow_score(loaded: Any) -> Any:
        scored.append(loaded)
        if len(scored) == 2:  # the champion, after the challenger
            filled.run_gate(4)
        return filled.evaluator.score(loaded)

    with pytest.raises(TransientError, match=r"the champion was version 1 and is version 4 now.*try again"):
        filled.run_gate(3, evaluator=replace(filled.evaluator, score=slow_score))
    assert filled.aliases() == {"champion": "4"}
    assert filled.history() == [("promote", "1", None), ("promote", "4", "1")]
    assert "vaeline.decision" not in filled.tags(3)
    assert not filled.run_gate(3).promote
    assert filled.aliases() == {"champion": "4", "challenger": "3"}


def test_an_alias_that_another_machine_moves_too_is_reported(filled: FilledRegistry, caplog: pytest.LogCaptureFixture):
    filled.run_gate(1)
    move = partial(filled.client.set_registered_model_alias, NAME, "champion", "2")
    with caplog.at_level(logging.WARNING):  # before the last write, which confirms the entry
        filled.run_gate(3, InterruptedClient(filled.client, 6, move, counted=WRITES))
    assert "version 3 became champion, but another machine set version 2 at the same time" in caplog.text
    assert filled.aliases()["champion"] == "2"
    assert filled.history()[-1] == ("promote", "3", "1")
    assert filled.rollback() == ("2", "3")


def test_another_registration_at_work_is_waited_for_and_reported(
    filled: FilledRegistry, caplog: pytest.LogCaptureFixture
):
    held = acquire(Path(".vaeline/registry.lock"))
    Timer(0.2, os.close, [held]).start()
    with registry_lock(filled.client, filled.workspace):
        assert caplog.messages == ["waiting for another registration to end"]


def test_rollback_goes_further_back_each_time_and_skips_deleted_versions(filled: FilledRegistry):
    assert [filled.run_gate(number).promote for number in (1, 2, 3, 4)] == [True] * 4, "each better than the one before"
    filled.client.delete_model_version(NAME, "2")
    assert filled.rollback("it hallucinates") == ("4", "3")
    assert filled.rollback() == ("3", "1")
    with pytest.raises(UserError, match="version 1 is champion and no previous champion is left"):
        filled.rollback()
    assert filled.aliases() == {"champion": "1"}
    assert filled.history()[-2:] == [("rollback", "3", "4"), ("rollback", "1", "3")]
    again = filled.run_gate(3)
    assert not again.promote
    assert "it was rolled back" in again.reasons[0]
    assert promote(filled.client, filled.workspace, NAME, 3, filled.evaluator, "") is not None, "a person may"
    assert filled.aliases()["champion"] == "3"
    filled.client.delete_model_version(NAME, "3")
    assert filled.run_gate(1).reasons == ("no champion before it",)
    assert filled.aliases() == {"champion": "1"}


def test_a_damaged_champion_is_reported_with_the_way_out_which_works(filled: FilledRegistry):
    filled.run_gate(2)
    weights = filled.weights(2)
    whole = weights.read_bytes()
    try:
        for damage in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            weights.unlink() if damage is None else weights.write_bytes(damage)
            decision = filled.run_gate(3)
            assert not decision.promote
            assert decision.reasons[0].startswith("not compared: the champion cannot be read: ")
            assert "--force --reason TEXT" in decision.reasons[0]
            assert str(weights.parent) not in decision.reasons[0]
        assert promote(filled.client, filled.workspace, NAME, 3, None, "the champion is damaged") is not None
        assert filled.aliases()["champion"] == "3"
        with pytest.raises(UserError, match=r"version 2, the previous champion, cannot be used \(`vaeline promote"):
            filled.rollback()
    finally:
        weights.write_bytes(whole)


def test_a_champion_of_other_images_under_the_same_data_s_digest_is_refused(filled: FilledRegistry, tmp_path: Path):
    loaded = saved(tmp_path / "other", section())
    data = loaded.config.data.model_copy(update={"digest": filled.evaluator.data_digest})
    with pytest.raises(UserError, match="is of 1 x 9 x 7 images, the test split's are 1 x 5 x 4"):
        filled.evaluator.candidate(replace(loaded, config=loaded.config.model_copy(update={"data": data})))


def test_a_champion_set_by_hand_is_compared_by_its_stored_model_if_it_can_be_verified(filled: FilledRegistry):
    filled.client.set_registered_model_alias(NAME, "champion", "3")
    assert filled.run_gate(2).reasons[0].startswith("gain -")
    assert filled.run_gate(4).promote
    assert filled.history()[-1] == ("promote", "4", "3")
    by_hand = filled.client.create_model_version(NAME, filled.client.get_model_version(NAME, "3").source)
    filled.client.set_registered_model_alias(NAME, "champion", by_hand.version)
    assert "has no tag vaeline.manifest" in filled.run_gate(4).reasons[0]
