import csv
import dataclasses
import io
from pathlib import Path

import pytest

from small_training import options
from vaeline.errors import UserError
from vaeline.training.history import Epoch, best, is_over, read_history, score, to_csv

ROW = Epoch(1, 10, -20.5, -18.0, 2.5, -21.0, -19.0, 2.0, 0.1, 1.0, 1e-3)


def rows(*bounds: float) -> list[Epoch]:
    """Epochs with these validation ELBOs (KL 2)."""
    return [
        dataclasses.replace(ROW, epoch=i, step=10 * i, validation_elbo=bound, validation_reconstruction=bound + 2)
        for i, bound in enumerate(bounds, start=1)
    ]


def test_the_best_epoch_has_the_highest_validation_elbo_the_first_of_equals():
    assert best(rows(-30, -20, -25, -20), beta=1.0).epoch == 2


def test_mistake_2_weights_are_chosen_under_the_weight_of_the_kl_that_training_ends_with():
    blurred = dataclasses.replace(ROW, epoch=1, validation_elbo=-23.0, validation_kl=1.0)
    sharp = dataclasses.replace(ROW, epoch=2, validation_elbo=-21.0, validation_kl=3.0)
    assert (score(blurred, 1.0), score(sharp, 1.0)) == (-23.0, -21.0)
    assert best([blurred, sharp], beta=1.0) is sharp
    assert best([blurred, sharp], beta=4.0) is blurred


def test_an_autoencoder_is_chosen_by_its_reconstruction():
    row = dataclasses.replace(ROW, validation_elbo=None, validation_kl=None)
    assert score(row, 1.0) == row.validation_reconstruction


def test_training_stops_after_patience_epochs_without_a_better_one():
    section = options(epochs=100, patience=3)
    assert not is_over(rows(-30, -20, -21, -22), section)
    assert is_over(rows(-30, -20, -21, -22, -20), section)
    assert not is_over(rows(-30, -20, -21, -22, -19), section)


def test_epochs_of_warm_up_do_not_try_the_patience():
    section = options(epochs=100, patience=2, warmup_epochs=4)
    assert not is_over(rows(-20, -21, -22, -23, -24), section)
    assert is_over(rows(-20, -21, -22, -23, -24, -25), section)


def test_training_stops_after_its_last_epoch():
    section = options(epochs=3)
    assert not is_over([], section)
    assert not is_over(rows(-3, -2), section)
    assert is_over(rows(-3, -2, -1), section)


def test_the_csv_gives_every_number_back_and_leaves_out_what_does_not_exist(tmp_path: Path):
    row = dataclasses.replace(ROW, train_elbo=-1 / 3, sigma=None)
    text = to_csv([row])
    path = tmp_path / "history.csv"
    path.write_text(text)
    assert read_history(path) == [row]
    path.write_text(text.replace("sigma", "colour"))
    with pytest.raises(UserError, match=r"history\.csv: is not what the stage train writes"):
        read_history(path)
    path.unlink()
    with pytest.raises(UserError, match=r"history\.csv: cannot be read: .*; run the stage train"):
        read_history(path)
    (read,) = csv.DictReader(io.StringIO(text))
    assert text.splitlines()[0] == (
        "epoch,step,train_elbo,train_reconstruction,train_kl,validation_elbo,validation_reconstruction,"
        "validation_kl,sigma,beta,learning_rate"
    )
    assert float(read["train_elbo"]) == -1 / 3
    assert read["sigma"] == ""
    assert read["epoch"] == "1"


@pytest.mark.parametrize("column", ["time", "date", "run_id", "host"])
def test_the_history_is_content_only(column: str):
    assert column not in to_csv([ROW]).splitlines()[0]
