"""What training reports: the rows of reports/history.csv, which of them is best, when to stop; and the tracker."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vaeline.config.train import Train
from vaeline.errors import UserError


@dataclass(frozen=True)
class Epoch:
    """One row of reports/history.csv: means over images in nats, never weighted, warmed up or regularised.

    Under objective iwae the ELBO's columns hold the bound that is trained, IWAE-k: more than reconstruction - KL, which
    stay the terms of the ELBO. The train columns are under weights that moved meanwhile.
    """

    epoch: int  # from 1
    step: int  # optimiser steps so far
    train_elbo: float | None  # like the KL, None for an autoencoder
    train_reconstruction: float
    train_kl: float | None
    validation_elbo: float | None
    validation_reconstruction: float
    validation_kl: float | None
    sigma: float | None  # pixels on [0, 1]; where the likelihood has one
    beta: float  # the KL's weight at the last step
    learning_rate: float  # at the last step


class Tracker:
    """Receiver of reports, which drops them all: the base of those that keep them.

    `step` counts optimiser steps. Every method returns at once (`flush` may wait for a disk) and never raises.
    """

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Named numbers."""

    def image(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """A picture, H x W or H x W x 3."""

    def flush(self) -> None:
        """Everything reported so far survives a power failure after this; a checkpoint follows."""


def score(row: Epoch, beta: float) -> float:
    """Criterion of the best weights: the validation bound, its KL weighted by beta; an autoencoder's reconstruction.

    Under a warm-up's weight of the KL the choice would fall on weights of half-way through it.
    """
    if row.validation_elbo is None or row.validation_kl is None:
        return row.validation_reconstruction
    return row.validation_elbo - (beta - 1) * row.validation_kl


def best(rows: Sequence[Epoch], beta: float) -> Epoch:
    """The first row with the highest score."""
    return max(rows, key=lambda row: score(row, beta))


def is_over(rows: Sequence[Epoch], options: Train) -> bool:
    """Whether all epochs are done, or `patience` of them, after the warm-up, without a better score."""
    if not rows:
        return False
    waited = rows[-1].epoch - max(best(rows, options.beta).epoch, options.warmup_epochs)
    return rows[-1].epoch >= options.epochs or waited >= options.patience


def to_csv(rows: Sequence[Epoch]) -> str:
    """The rows as CSV with a header; numbers in full, an empty field where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_history(path: Path) -> list[Epoch]:
    """The rows of reports/history.csv; raises UserError where the file is missing, or has other columns or no row."""
    kinds = {"epoch": int, "step": int}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                Epoch(**{name: kinds.get(name, float)(text) if text else None for name, text in row.items()})  # type: ignore[arg-type]
                for row in csv.DictReader(file)
            ]
        if rows:
            return rows
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage train") from None
    except (ValueError, TypeError, csv.Error):
        pass
    raise UserError(f"{path}: is not what the stage train writes; run it again")
