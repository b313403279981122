import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from pipeline.sweep.pictures import pictures
from pipeline.sweep.ranking import best, is_maximised, ranked, rows, to_csv, to_markdown
from pipeline.sweep.state import Baseline, Request, Sweep
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT

PARAMS: Any = read_yaml(ROOT / "params.yaml")
ELBO = (-3.25, -1.123456789012345, None, -2.0)


def scored(metric: str = "test.elbo", maximise: bool = True) -> Sweep:
    """Four trials: the second is best, the third failed."""
    request = Request(["train.beta=0.5,1", "model.latent_dim=2,8"], metric=metric, maximise=maximise)
    sweep = Sweep.plan("s", request, Baseline("c" * 40, "", "", PARAMS))
    for trial, elbo in zip(list(sweep.trials), ELBO, strict=True):
        if elbo is None:
            sweep.trials[trial.number] = replace(trial, status="failed", reason="diverged | at step 2")
        else:
            kl = 0.25 * (1 + trial.number)
            metrics = {"test.elbo": elbo, "test.kl": kl, "test.reconstruction": elbo + kl, "test.nll": -elbo - 0.1}
            sweep.trials[trial.number] = replace(trial, status="done", metrics=metrics, seconds=3)
    return sweep


def numbers(sweep: Sweep) -> list[int]:
    return [trial.number for trial in ranked(sweep)]


def test_the_best_comes_first_by_the_metrics_direction_and_what_failed_last():
    assert numbers(scored()) == [1, 3, 0, 2]
    assert numbers(scored(maximise=False)) == [0, 3, 1, 2]
    assert numbers(scored("test.nll", maximise=False)) == [1, 3, 0, 2]
    assert best(scored()) == scored().trials[1]


def test_where_no_trial_has_the_metric_none_is_best():
    sweep = scored("test.absent")
    assert best(sweep) is None
    assert numbers(sweep) == [0, 1, 2, 3]
    assert [row[-1] for row in rows(sweep)[1]][:2] == ["no test.absent in its metrics"] * 2


@pytest.mark.parametrize(
    ("metric", "more_is_better"),
    [
        ("test.elbo", True),
        ("validation.reconstruction", True),
        ("test.active_units", True),
        ("latent.probes.knn_accuracy.posterior_means", True),
        ("test.nll", False),
        ("test.mse", False),
        ("test.bits_per_dimension_nll", False),
        ("latent.frechet_cnn_features.prior_samples", False),
    ],
)
def test_well_known_metrics_have_a_direction(metric: str, more_is_better: bool):
    assert is_maximised(metric) == more_is_better


def test_a_metric_without_a_known_direction_asks_for_it():
    with pytest.raises(UserError, match="--maximise or --minimise"):
        is_maximised("test.wonder")


def test_the_csv_has_every_metric_to_the_last_digit():
    table = list(csv.DictReader(io.StringIO(to_csv(scored()))))
    assert [row["rank"] for row in table] == ["1", "2", "3", ""]
    assert float(table[0]["test.elbo"]) == -1.123456789012345
    assert (table[0]["train.beta"], table[0]["model.latent_dim"]) == ("0.5", "8")
    assert (table[3]["status"], table[3]["reason"], table[3]["test.elbo"]) == ("failed", "diverged | at step 2", "")


def test_the_table_shows_what_is_varied_the_metric_first_and_the_reason_of_a_failure():
    header, body = rows(scored("test.nll", maximise=False))
    assert header[:6] == ["rank", "trial", "beta", "latent_dim", "test.nll", "test.elbo"]
    assert body[0][:5] == ["1", "s-02-beta0.5-latent_dim8", "0.5", "8", "1.0235"]
    assert body[3][-1] == "failed: diverged | at step 2"
    assert "failed: diverged \\| at step 2 |" in to_markdown(header, body)


def test_the_pictures_are_whole_and_the_same_every_time():
    drawn = pictures(scored())
    assert set(drawn) == {"parallel_coordinates.png", "rate_distortion.png"}
    assert drawn == pictures(scored())
    for content in drawn.values():
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_a_picture_needs_two_trials_that_have_what_it_shows():
    alone = scored()
    alone.trials[1:] = [replace(trial, status="waiting") for trial in alone.trials[1:]]
    assert pictures(alone) == {}
    without_kl = scored()
    for trial in without_kl.trials:
        trial.metrics.pop("test.kl", None)
    assert set(pictures(without_kl)) == {"parallel_coordinates.png"}
