"""Scores and gains against the evaluation's own numbers and a gain that is known."""

import math

import numpy as np
import pytest

from vaeline import config
from vaeline.core.model import VAE
from vaeline.errors import UserError
from vaeline.evaluation.comparison import Scores, gain, score
from vaeline.evaluation.split_metrics import evaluate
from vaeline.training.build import build_model

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), dtype=np.uint8)


def small_vae(seed: int = 1, sigma: float = 0.3) -> VAE:
    section = config.Model(
        latent_dim=3,
        network=config.Mlp(kind="mlp", hidden=[8]),
        likelihood=config.Gaussian(kind="gaussian", sigma=sigma),
    )
    return build_model(section, (1, 4, 4), "elbo", seed=seed).requires_grad_(False).eval()


def test_the_scores_are_those_of_the_stage_evaluate():
    model = small_vae()
    report = evaluate(
        model, PIXELS, PIXELS, objective="elbo", importance_samples=1, active_units_threshold=1e-4, seed=3
    ).report["test"]
    scores = score(model, PIXELS, seed=3, active_units_threshold=1e-4)
    assert scores.elbo.mean() == report["elbo"]
    assert scores.psnr == report["psnr"]
    assert scores.active_units == report["active_units"]


def test_the_same_noise_for_both_makes_the_gain_far_surer_than_the_two_elbos():
    """With sigma alone changed, d = |x - m|^2 (1/s^2 - 1/t^2) / 2 + D log(s/t) for each image, KL and noise alike."""
    champion, challenger = (score(small_vae(sigma=s), PIXELS, seed=1, active_units_threshold=0.01) for s in (0.3, 0.31))
    found = gain(challenger, champion)
    quadratic = (challenger.elbo - champion.elbo - 16 * math.log(0.3 / 0.31)) / (0.5 / 0.3**2 - 0.5 / 0.31**2)
    assert (quadratic > 0).all(), "a squared error"
    assert found.value == pytest.approx(challenger.elbo.mean() - champion.elbo.mean())
    unpaired = math.hypot(challenger.elbo.std(ddof=1), champion.elbo.std(ddof=1)) / math.sqrt(50)
    assert found.se < unpaired / 10


def test_equal_models_have_no_gain_and_one_image_no_error():
    scores = score(small_vae(), PIXELS, seed=1, active_units_threshold=0.01)
    assert (gain(scores, scores).value, gain(scores, scores).se) == (0.0, 0.0)
    one = Scores(scores.elbo[:1], 20.0, 3)
    with pytest.raises(UserError, match="leaves 1 image"):
        gain(one, one)
