import csv
import io
from pathlib import Path

import pytest

from pipeline.sweep.ranking import best, parse_metric, ranked, rows, to_csv, to_markdown
from sweep_repository import make_scored_sweep
from vaeline.errors import UserError


def numbers(folder: Path, metric: str = "test.elbo", maximise: bool = True) -> list[int]:
    return [trial.number for trial in ranked(make_scored_sweep(folder, metric, maximise))]


def test_the_best_comes_first_by_the_metrics_direction_and_what_failed_last(tmp_path: Path):
    """Mistake 20."""
    for name in ("up", "down", "nll", "absent"):
        (tmp_path / name).mkdir()
    assert numbers(tmp_path / "up") == [1, 3, 0, 2]
    assert numbers(tmp_path / "down", maximise=False) == [0, 3, 1, 2]
    assert numbers(tmp_path / "nll", "test.nll", maximise=False) == [1, 3, 0, 2]
    chosen = best(make_scored_sweep(tmp_path / "up"))
    assert chosen
    assert chosen.number == 1
    absent = make_scored_sweep(tmp_path / "absent", "test.absent")
    assert best(absent) is None
    assert [row[-1] for row in rows(absent)[1]][:2] == ["failed: no test.absent in its metrics"] * 2


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
    assert parse_metric(metric) == (metric, more_is_better)


def test_a_metric_without_a_known_direction_needs_one():
    with pytest.raises(UserError, match=r"^--metric: found 'test.wonder', .* allowed: max:METRIC or min:METRIC$"):
        parse_metric("test.wonder")
    assert parse_metric("max:test.wonder") == ("test.wonder", True)
    assert parse_metric("min:test.elbo") == ("test.elbo", False)


def test_the_csv_has_every_metric_to_the_last_digit(tmp_path: Path):
    table = list(csv.DictReader(io.StringIO(to_csv(make_scored_sweep(tmp_path)))))
    assert [row["rank"] for row in table] == ["1", "2", "3", ""]
    assert float(table[0]["test.elbo"]) == -1.123456789012345
    assert (table[0]["train.beta"], table[0]["model.latent_dim"]) == ("0.5", "8")
    assert (table[3]["status"], table[3]["reason"], table[3]["test.elbo"]) == ("failed", "diverged | at step 2", "")


def test_the_table_shows_what_is_varied_the_metric_first_and_the_reason_of_a_failure(tmp_path: Path):
    header, body = rows(make_scored_sweep(tmp_path, "test.nll", maximise=False))
    assert header[:6] == ["rank", "trial", "beta", "latent_dim", "test.nll", "test.elbo"]
    assert body[0][:5] == ["1", "s-02-beta0.5-latent_dim8", "0.5", "8", "1.0235"]
    assert body[3][-1] == "failed: diverged | at step 2"
    assert "failed: diverged \\| at step 2 |" in to_markdown(header, body)
