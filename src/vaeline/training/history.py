"""What each epoch came to, which epoch is best, and when to stop: pure functions of the rows."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vaeline.config import Train
from vaeline.errors import UserError


@dataclass(frozen=True)
class Epoch:
    """One row of reports/history.csv. All in nats per image; the ELBO is never weighted, warmed up or regularised.

    Under objective iwae the ELBO's columns hold the bound that is trained, IWAE-k with the k of the params: more than
    reconstruction - KL, which stay the terms of the ELBO.
    The train columns are means over the epoch's images, under weights that moved meanwhile. An autoencoder has no
    ELBO and no KL.
    """

    epoch: int  # from 1
    step: int  # optimiser steps so far
    train_elbo: float | None
    train_reconstruction: float
    train_kl: float | None
    validation_elbo: float | None
    validation_reconstruction: float
    validation_kl: float | None
    sigma: float | None  # pixels on [0, 1]; where the likelihood has one
    beta: float  # the KL's weight at the last step
    learning_rate: float  # at the last step


def score(row: Epoch, beta: float) -> float:
    """What the best weights have most of: the validation bound with the KL's weight that training ends with.

    With beta = 1 the bound itself, for an autoencoder the reconstruction. Choosing under another weight than the
    trained one would take weights of half-way through a warm-up for the result.
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


def summary(row: Epoch, options: Train) -> str:
    """The epoch in one line."""
    start = f"epoch {row.epoch}/{options.epochs}: "
    if row.validation_elbo is None:
        return f"{start}reconstruction {row.train_reconstruction:.2f}, validation {row.validation_reconstruction:.2f}"
    if options.objective == "iwae":
        return f"{start}IWAE-{options.samples} {row.train_elbo:.2f}, validation {row.validation_elbo:.2f}"
    terms = f"{row.validation_reconstruction:.2f} - KL {row.validation_kl:.2f}"
    return f"{start}ELBO {row.train_elbo:.2f}, validation {row.validation_elbo:.2f} = {terms}"


def to_csv(rows: Sequence[Epoch]) -> str:
    """The rows as CSV with a header; numbers in full, an empty field where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_history(path: Path) -> list[Epoch]:
    """The rows of reports/history.csv; raises UserError where the file is missing or has other columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_epoch(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage train") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: is not what the stage train writes; run it again") from None


def _epoch(row: dict[str, str]) -> Epoch:
    whole = ("epoch", "step")
    return Epoch(**{name: int(text) if name in whole else float(text) if text else None for name, text in row.items()})  # type: ignore[arg-type]
