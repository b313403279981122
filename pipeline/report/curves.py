"""Charts of a run: the training's curves and the KL of each latent dimension."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from vaeline.config import Train
from vaeline.plotting.charts import MOST_BARS, Picture, bars, chart, known, lines
from vaeline.training.history import Epoch, best

SIZE = (3.6, 2.4)  # inches
COLUMNS = (("sigma", "σ of the likelihood", "pixels on [0, 1]"), ("beta", "β, the KL's weight", ""))


def training_curves(rows: Sequence[Epoch], options: Train) -> list[Picture]:
    """The bound, its terms, and σ and β where they changed, by epoch; the kept epoch is marked."""
    kept = best(rows, options.beta).epoch
    bound = "IWAE bound" if options.objective == "iwae" else "ELBO"
    found = []
    for key, title in (("elbo", bound), ("reconstruction", "Reconstruction term"), ("kl", "KL")):
        series = {
            split: [(row.epoch, getattr(row, f"{split}_{key}")) for row in rows] for split in ("train", "validation")
        }
        found.append((title, "nats per image", series))
    for column, title, unit in COLUMNS:
        if len({getattr(row, column) for row in rows}) > 1:
            found.append((title, unit, {column: [(row.epoch, getattr(row, column)) for row in rows]}))
    return [_curve(title, unit, series, kept) for title, unit, series in found if known(series)]


def _curve(title: str, unit: str, series: dict[str, list[tuple[int, float | None]]], kept: int) -> Picture:
    ends = [f"{name} from {p[0][1]:.4g} to {p[-1][1]:.4g}" for name, p in known(series).items()]
    caption = f"{title}{f', {unit}' if unit else ''}, by epoch: {'; '.join(ends)}"

    def panel(axes: object) -> None:
        lines(axes, series, kept)
        axes.set(title=title, xlabel="epoch", ylabel=unit)  # type: ignore[attr-defined]

    return chart(title, caption, panel, size=SIZE)


def constants(rows: Sequence[Epoch]) -> list[str]:
    """σ and β in words where they are the same in every epoch."""
    found = []
    for column, name, unit in (("beta", "β", ""), ("sigma", "σ", " pixels on [0, 1]")):
        values = {getattr(row, column) for row in rows}
        if len(values) == 1 and (value := values.pop()) is not None:
            found.append(f"{name} = {value:.4g}{unit} throughout")
    return found


def kl_bars(path: Path) -> Picture | None:
    """The KL of each latent dimension, from reports/kl_per_dimension.csv; None where it has no such parts."""
    with path.open(newline="", encoding="utf-8") as file:
        values = {f"z{row['dimension']}": float(row["kl"]) for row in csv.DictReader(file)}
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    if not values:
        return None
    shown = f"the largest {MOST_BARS} of {len(values)}" if len(values) > MOST_BARS else f"all {len(values)}"
    most = f"the largest {max(values.values()):.4g} nats"
    caption = f"KL of each latent dimension on the test split by falling size, {shown}; {most}"

    def panel(axes: object) -> None:
        bars(axes, values)
        axes.set(title="KL of each latent dimension", ylabel="nats")  # type: ignore[attr-defined]

    return chart("kl", caption, panel, size=SIZE)
