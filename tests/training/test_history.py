import dataclasses
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


def test_mistake_2_weights_are_chosen_under_the_weight_of_the_kl_that_training_ends_with():
    assert best(rows(-30, -20, -25, -20), beta=1.0).epoch == 2  # the first of equals
    blurred = dataclasses.replace(ROW, epoch=1, validation_elbo=-23.0, validation_kl=1.0)
    sharp = dataclasses.replace(ROW, epoch=2, validation_elbo=-21.0, validation_kl=3.0)
    assert (score(blurred, 1.0), score(sharp, 1.0)) == (-23.0, -21.0)
    assert best([blurred, sharp], beta=1.0) is sharp
    assert best([blurred, sharp], beta=4.0) is blurred
    autoencoder = dataclasses.replace(ROW, validation_elbo=None, validation_kl=None)
    assert score(autoencoder, 1.0) == autoencoder.validation_reconstruction


@pytest.mark.parametrize(
    ("section", "bounds", "over"),
    [
        ({"epochs": 3}, (), False),
        ({"epochs": 3}, (-3, -2), False),
        ({"epochs": 3}, (-3, -2, -1), True),
        ({"patience": 3}, (-30, -20, -21, -22), False),
        ({"patience": 3}, (-30, -20, -21, -22, -20), True),
        ({"patience": 3}, (-30, -20, -21, -22, -19), False),
        ({"patience": 2, "warmup_epochs": 4}, (-20, -21, -22, -23, -24), False),  # the warm-up does not count
        ({"patience": 2, "warmup_epochs": 4}, (-20, -21, -22, -23, -24, -25), True),
    ],
)
def test_training_ends_after_its_epochs_or_patience_without_a_better_one(section: dict[str, int], bounds, over: bool):
    assert is_over(rows(*bounds), options(**{"epochs": 100} | section)) is over


def test_the_csv_gives_every_number_back_and_leaves_out_what_does_not_exist(tmp_path: Path):
    row, path = dataclasses.replace(ROW, train_elbo=-1 / 3, sigma=None), tmp_path / "history.csv"
    text = to_csv([row])
    assert text == (
        "epoch,step,train_elbo,train_reconstruction,train_kl,validation_elbo,validation_reconstruction,validation_kl,"
        "sigma,beta,learning_rate\n1,10,-0.3333333333333333,-18.0,2.5,-21.0,-19.0,2.0,,1.0,0.001\n"
    )
    path.write_text(text)
    assert read_history(path) == [row]
    header = text.splitlines()[0]
    for wrong in (text.replace("sigma", "colour"), "", header, text + "1" * 200_000, text + "1,x"):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"history\.csv: is not what the stage train writes"):
            read_history(path)
    path.unlink()
    with pytest.raises(UserError, match=r"history\.csv: cannot be read: .*; run the stage train"):
        read_history(path)
