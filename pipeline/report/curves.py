"""What `reports/history.csv` and `reports/kl_per_dimension.csv` look like, as charts."""

import csv
import io
from dataclasses import fields
from pathlib import Path

from pipeline.report import charts
from vaeline.config import Params
from vaeline.io.workspace import REPORTS
from vaeline.training import history

HISTORY, KL = REPORTS / "history.csv", REPORTS / "kl_per_dimension.csv"


def training_curves(params: Params) -> list[charts.Chart]:
    """Bound, its terms, and what else changed; what never does is told by `constants`."""
    rows = _rows()
    if not rows:
        return []
    kept = kept_epoch(params)

    def of(column: str) -> charts.Points:
        return [(row.epoch, getattr(row, column)) for row in rows]

    def both(name: str) -> dict[str, charts.Points]:
        return {split: of(f"{split}_{name}") for split in ("train", "validation")}

    nats, bound = "nats per image", "IWAE bound" if params.train.objective == "iwae" else "ELBO"
    drawn = [
        charts.curves(bound, nats, both("elbo"), kept),
        charts.curves("Reconstruction term", nats, both("reconstruction"), kept),
        charts.curves("KL", nats, both("kl"), kept),
    ]
    for column, title, unit in (
        ("sigma", "σ of the likelihood", "pixels on [0, 1]"),
        ("beta", "β, the KL's weight", ""),
    ):
        if len({getattr(row, column) for row in rows}) > 1:
            drawn.append(charts.curves(title, unit, {column: of(column)}, kept))
    return [chart for chart in drawn if chart is not None]


def kept_epoch(params: Params) -> int | None:
    """The epoch whose weights are the model's."""
    rows = _rows()
    return history.best(rows, params.train.beta).epoch if rows else None


def constants() -> list[str]:
    """What is the same in every epoch, in words."""
    rows, told = _rows(), []
    for column, words in (("beta", "β = {:g}"), ("sigma", "σ = {:.4g} pixels on [0, 1]")):
        values = {getattr(row, column) for row in rows}
        if len(values) == 1 and (value := values.pop()) is not None:
            told.append(f"{words.format(value)} throughout")
    return told


def kl_bars() -> charts.Bars | None:
    """The KL of each latent dimension; None under a prior where it has no parts."""
    return charts.bars([(f"z{row['dimension']}", float(row["kl"])) for row in _table(KL)], "nats")


def _rows() -> list[history.Epoch]:
    """None where the file has other columns: that of other code."""
    names = {field.name for field in fields(history.Epoch)}
    return [_epoch(row) for row in _table(HISTORY) if row.keys() == names]


def _epoch(row: dict[str, str]) -> history.Epoch:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return history.Epoch(
        epoch=int(row["epoch"]),
        step=int(row["step"]),
        train_elbo=number("train_elbo"),
        train_reconstruction=float(row["train_reconstruction"]),
        train_kl=number("train_kl"),
        validation_elbo=number("validation_elbo"),
        validation_reconstruction=float(row["validation_reconstruction"]),
        validation_kl=number("validation_kl"),
        sigma=number("sigma"),
        beta=float(row["beta"]),
        learning_rate=float(row["learning_rate"]),
    )


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []
