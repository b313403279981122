import csv
import io
from pathlib import Path

from PIL import Image

from data_files import refusal
from pipeline.sweep.reports import best, pictures, ranked, to_csv, to_json, to_markdown
from pipeline.sweep.study import Request, parse_metric
from sweep_repository import make_scored_sweep, make_sweep

OPTUNAS = {"parallel_coordinates.png", "slice.png", "importances.png"}


def test_the_best_comes_first_by_the_metrics_direction_and_what_failed_last(tmp_path: Path):
    """Mistake 20."""
    expected = {"max:test.elbo": [1, 3, 0, 2], "min:test.elbo": [0, 3, 1, 2], "test.nll": [1, 3, 0, 2]}
    for folder, (metric, numbers) in enumerate(expected.items()):
        sweep = make_scored_sweep(tmp_path / str(folder), metric)
        assert [trial.number for trial in ranked(sweep)] == numbers
        assert (chosen := best(sweep)) and chosen.number == numbers[0]
    absent = make_scored_sweep(tmp_path / "absent", "max:test.absent")
    assert best(absent) is None
    assert to_markdown(absent).count("| failed: no test.absent in its metrics") == 3


def test_well_known_metrics_have_a_direction_and_others_need_one():
    for metric in ("validation.reconstruction", "test.active_units", "latent.probes.knn_accuracy.posterior_means"):
        assert parse_metric(metric) == (metric, True)
    for metric in ("test.nll", "test.bits_per_dimension_nll", "latent.frechet_cnn_features.prior_samples"):
        assert parse_metric(metric) == (metric, False)
    for text in ("test.wonder", "max:", "test.elbo:"):
        assert refusal(parse_metric, text).startswith(f"--metric: found '{text}', whose direction is not known; ")
    assert parse_metric("max:test.wonder") == ("test.wonder", True)
    assert parse_metric("min:test.elbo") == ("test.elbo", False)


def test_the_csv_has_every_metric_to_the_last_digit_and_the_table_what_is_varied_and_the_metric_first(tmp_path: Path):
    sweep = make_scored_sweep(tmp_path, "test.nll")
    table = list(csv.DictReader(io.StringIO(to_csv(sweep))))
    assert [row["rank"] for row in table] == ["1", "2", "3", ""]
    assert float(table[0]["test.elbo"]) == -1.123456789012345
    assert (table[0]["train.beta"], table[0]["model.latent_dim"]) == ("0.5", "8")
    assert (table[3]["status"], table[3]["reason"], table[3]["test.elbo"]) == ("failed", "diverged | at step 2", "")
    header, _, first, *_, last = to_markdown(sweep).splitlines()
    assert header.split()[1:12:2] == ["rank", "trial", "train.beta", "model.latent_dim", "test.nll", "test.elbo"]
    assert first.split()[1:10:2] == ["1", "s-02-beta0.5-latent_dim8", "0.5", "8", "1.0235"]
    assert last.endswith("failed: diverged \\| at step 2 |")
    assert len(header) == len(first) == len(last)


def test_a_table_for_a_narrow_terminal_leaves_out_columns_then_cuts_words(tmp_path: Path):
    sweep = make_scored_sweep(tmp_path, "test.nll")
    whole = to_markdown(sweep).splitlines()[0].split()[1::2]
    assert to_markdown(sweep, 500) == to_markdown(sweep)
    for width in (120, 80, 60, 50):
        lines = to_markdown(sweep, width).splitlines()
        assert {len(line) for line in lines} == {len(lines[0])}
        assert len(lines[0]) <= width
        shown = lines[0].split()[1::2]
        assert [name for name in whole if name in shown] == shown
        assert {"rank", "trial", "test.nll", "outcome"} <= set(shown)
        assert lines[2].startswith("| 1    | s-02-")
    assert "train.beta" in to_markdown(sweep, 120).splitlines()[0]


def test_for_machines_there_is_every_trial_and_the_gates_decision_on_the_best(tmp_path: Path):
    sweep = make_scored_sweep(tmp_path, "test.nll")
    content = to_json(sweep)
    assert (content["best"], content["direction"], content["gate"]) == ("s-02-beta0.5-latent_dim8", "min", None)
    assert content["trials"][0]["metrics"]["test.elbo"] == -1.123456789012345
    assert content["trials"][3]["reason"] == "diverged | at step 2"
    assert content["trials"][1]["values"] == {"train.beta": 1, "model.latent_dim": 8}
    sweep.study.set_user_attr("verdict", "m: rejected (too few)")
    assert to_json(sweep)["gate"] is None, "of another trial"
    sweep.study.set_user_attr("completed", content["best"])
    assert to_json(sweep)["gate"] == "m: rejected (too few)"


def test_the_pictures_are_whole_the_same_every_time_and_of_two_trials_that_have_what_they_show(tmp_path: Path):
    sweep = make_scored_sweep(tmp_path)
    drawn = pictures(sweep)
    assert drawn == pictures(sweep)
    assert set(drawn) == OPTUNAS | {"rate_distortion.png"}
    for content in drawn.values():
        with Image.open(io.BytesIO(content)) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
    sweep = make_sweep(tmp_path / "few", Request(["train.beta=1,2"]))
    sweep.begin()
    for expected in (set(), OPTUNAS):
        trial = sweep.next_trial()
        assert trial
        more = {"test.kl": 1.0, "test.reconstruction": -1.0} if trial.number else {}
        sweep.finish(trial.number, {"metrics": {"test.elbo": -2.0, **more}})
        assert set(pictures(sweep)) == expected
