import math
from dataclasses import replace
from typing import Any

import pytest

from vaeline.tracking.gate import Evidence, decide

MODEL = Evidence("a", "data", "gaussian", "elbo", -100.0, 5, {"test/elbo": -101.0, "test/nll": 99.0})
CHAMPION = replace(MODEL, digest="b", validation_elbo=-100.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"metrics": {"test/elbo": math.nan, "test/nll": math.inf, "test/mse": 1.0}},
            "not finite: test/elbo, test/nll",
        ),
        ({"validation_elbo": math.nan}, "no finite validation ELBO"),
        ({"active_units": 1}, "1 active units, register.minimum_active_units is 2"),
        ({"objective": "autoencoder", "validation_elbo": math.nan}, "objective 'autoencoder' has no ELBO"),
    ],
)
@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_an_unsound_model_is_rejected_with_or_without_a_champion(
    changes: dict[str, Any], reason: str, champion: Evidence | None
):
    decision = decide(replace(MODEL, **changes), champion, minimum_active_units=2)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith(reason)


def test_every_fault_is_told():
    bad = replace(MODEL, active_units=0, metrics={"a": math.nan})
    assert decide(bad, None, 1).reasons == (
        "not finite: a",
        "0 active units, register.minimum_active_units is 1",
    )


def test_a_model_trained_under_iwae_is_judged_by_its_elbo_like_any_other():
    trained = replace(MODEL, digest="c" * 64, objective="iwae")
    assert decide(trained, None, 2).promote
    assert decide(replace(trained, validation_elbo=1.0), CHAMPION, 2).promote
    assert not decide(replace(trained, validation_elbo=math.nan), None, 2).promote


@pytest.mark.parametrize("units", [2, 3])
def test_the_first_sound_model_is_promoted(units: int):
    decision = decide(replace(MODEL, active_units=units), None, 2)
    assert decision.promote
    assert decision.reasons == ("no champion before it",)


@pytest.mark.parametrize(("elbo", "promote"), [(-100.4, True), (-100.5, False), (-100.6, False)])
def test_only_a_strictly_better_validation_elbo_takes_the_place(elbo: float, promote: bool):
    decision = decide(replace(MODEL, validation_elbo=elbo), CHAMPION, 2)
    assert decision.promote is promote
    assert f"{elbo:.4f}" in decision.reasons[0]
    assert "-100.5000" in decision.reasons[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_digest": "other"}, "its data is data, the champion's other"),
        ({"data_digest": ""}, "its data is data, the champion's unknown"),
        ({"likelihood": "bernoulli"}, "its likelihood is gaussian, the champion's bernoulli"),
        ({"validation_elbo": math.nan}, "the champion has no recorded validation ELBO"),
    ],
)
def test_models_that_cannot_be_compared_are_not_and_the_way_out_is_told(changes: dict[str, Any], words: str):
    decision = decide(replace(MODEL, validation_elbo=0.0), replace(CHAMPION, **changes), 2)
    assert not decision.promote
    assert decision.reasons[0].startswith(f"not compared: {words}")
    assert "alias champion" in decision.reasons[0]


def test_the_champion_itself_changes_nothing():
    decision = decide(MODEL, replace(CHAMPION, digest="a"), 2)
    assert not decision.promote
    assert decision.reasons == ("it is the champion already",)
