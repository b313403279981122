import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from vaeline.config import Register
from vaeline.evaluation.split_metrics import Scores
from vaeline.registry.gate import Evidence, decide

MODEL = Evidence("a", "data", "gaussian", "elbo", -100.0, 5, {"test/elbo": -101.0, "test/nll": 99.0})
THRESHOLDS = Register(name="m", minimum_active_units=2, margin=0.0, confidence=0.95, psnr_tolerance=0.5)
HARD = np.random.default_rng(0).normal(-100.0, 30.0, 400)  # ELBOs vary far more between images than between models
CHAMPION = replace(MODEL, digest="b", scores=Scores(HARD, 20.0, 5))


def challenger(gain: float = 1.0, spread: float = 1.0, psnr: float = 20.0, **changes: Any) -> Evidence:
    """Its paired differences have exactly this mean and standard deviation."""
    noise = np.random.default_rng(1).normal(size=len(HARD))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return replace(MODEL, **changes, scores=Scores(HARD + gain + spread * noise, psnr, 5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metrics": {"a": math.nan, "b": math.inf, "c": 1.0}}, "not finite: a, b"),
        ({"validation_elbo": math.nan}, "no finite validation ELBO"),
        ({"blind_elbo": -67.0}, "validation ELBO -100 nats per image, a fixed model that has learned nothing has -67"),
        ({"active_units": 1}, "1 active units, register.minimum_active_units is 2"),
        ({"objective": "autoencoder", "validation_elbo": math.nan}, "objective 'autoencoder' has no ELBO"),
    ],
)
@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_an_unsound_model_is_rejected_beside_any_champion(
    changes: dict[str, Any], reason: str, champion: Evidence | None
):
    decision = decide(challenger(**changes), champion, THRESHOLDS)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith(reason)


def test_every_failure_is_listed():
    bad = challenger(-1.0, psnr=10.0, active_units=0, metrics={"a": math.nan})
    reasons = decide(bad, CHAMPION, THRESHOLDS).reasons
    words = ("not finite: a", "0 active units", "gain -1.0000", "PSNR 10.00 dB, the champion's 20.00: worse")
    assert len(reasons) == len(words)
    for reason, word in zip(reasons, words, strict=True):
        assert reason.startswith(word)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_image_whose_elbo_is_not_finite_is_enough_to_reject(value: float):
    scores = challenger().scores
    assert scores is not None
    scores.elbo[7] = value
    for champion in (None, CHAMPION):
        decision = decide(replace(MODEL, scores=scores), champion, THRESHOLDS)
        assert decision.reasons == ("not finite: its ELBO on 1 of 400 test images, its PSNR 20.00 dB",)
        assert all(math.isfinite(number) for number in decision.numbers.values())


@pytest.mark.parametrize(
    ("changes", "champion", "promoted", "reason"),
    [
        ({"active_units": 2}, None, True, "no champion before it"),
        ({"objective": "iwae"}, None, True, "no champion before it"),
        ({"objective": "iwae"}, CHAMPION, True, "gain +1.0000"),
        ({"digest": "b"}, CHAMPION, False, "it is the champion already"),
    ],
)
def test_the_first_sound_model_is_promoted_however_trained_and_the_champion_itself_changes_nothing(
    changes: dict[str, Any], champion: Evidence | None, promoted: bool, reason: str
):
    decision = decide(challenger(**changes), champion, THRESHOLDS)
    assert decision.promote is promoted
    assert decision.reasons[0].startswith(reason)


@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.999])
@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("spread", [0.5, 8.0])
def test_promoted_above_the_margin_by_the_quantile_of_the_paired_error(confidence: float, margin: float, spread: float):
    """By hand: se = sd / sqrt(400) = spread / 20, whatever the images' own spread of 30 nats."""
    thresholds = THRESHOLDS.model_copy(update={"margin": margin, "confidence": confidence})
    edge = margin + NormalDist().inv_cdf(confidence) * spread / 20
    above, below = (decide(challenger(edge + step, spread), CHAMPION, thresholds) for step in (1e-6, -1e-6))
    assert above.promote
    assert not below.promote
    assert above.numbers["gain"] == pytest.approx(edge, abs=1e-5)
    assert above.numbers["gain_se"] == pytest.approx(spread / 20)
    assert above.numbers["gain_lower"] == pytest.approx(margin, abs=1e-5)
    assert f"not above register.margin {margin:g}" in below.reasons[0]


def test_a_model_with_no_true_gain_is_promoted_no_more_often_than_the_confidence_allows():
    random = np.random.default_rng(2)
    scores = [Scores(HARD + random.normal(size=len(HARD)), 20.0, 5) for _ in range(2000)]
    wrong = sum(decide(replace(MODEL, scores=found), CHAMPION, THRESHOLDS).promote for found in scores)
    assert 60 <= wrong <= 140  # 100 expected, standard deviation 9.7
    equal = decide(replace(MODEL, scores=CHAMPION.scores), CHAMPION, THRESHOLDS)
    assert not equal.promote
    assert equal.reasons[0].startswith("gain +0.0000 ± 0.0000 nats per image")


@pytest.mark.parametrize(
    ("psnr", "ssim", "worse"),
    [
        (25.0, None, ""),
        (19.5, 0.895, ""),
        (19.49, 0.9, "PSNR 19.49 dB, the champion's 20.00: worse by more than register.psnr_tolerance 0.5 dB"),
        (20.0, 0.885, "SSIM 0.8850, the champion's 0.9000: worse by more than register.ssim_tolerance 0.01"),
    ],
)
def test_reconstructions_may_be_worse_by_the_tolerance_and_no_more(psnr: float, ssim: float | None, worse: str):
    """The SSIM is measured of first stages alone."""
    better, champion = challenger(psnr=psnr), replace(CHAMPION, scores=replace(CHAMPION.scores, ssim=0.9))
    decision = decide(replace(better, scores=replace(better.scores, ssim=ssim)), champion, THRESHOLDS)
    assert decision.promote == (not worse)
    assert not worse or decision.reasons == (worse,)


@pytest.mark.parametrize(
    ("champion", "words"),
    [
        (replace(CHAMPION, data_digest="other", scores=None), "its data is data, the champion's other"),
        (replace(CHAMPION, likelihood="bernoulli", scores=None), "its likelihood is gaussian, the champion's bern"),
        (replace(CHAMPION, objective="autoencoder", scores=None), "the champion is an autoencoder, which has no ELBO"),
        (replace(CHAMPION, scores=Scores(np.full(400, math.nan), 20.0, 5)), "the champion's scores on the test split"),
        ("it is torn", "the champion cannot be read: it is torn"),
    ],
    ids=["data", "likelihood", "objective", "scores", "damage"],
)
def test_a_champion_that_cannot_be_compared_stays_and_the_way_out_is_named(champion: Evidence | str, words: str):
    decision = decide(challenger(), champion, THRESHOLDS)
    assert not decision.promote
    (reason,) = decision.reasons
    assert reason.startswith(f"not compared: {words}")
    assert "--force --reason TEXT" in reason
