"""Which trial is best: the metric's direction, the order, and the table as CSV and Markdown."""

import csv
import io
import re
from collections.abc import Sequence

from pipeline.sweep.space import varied
from pipeline.sweep.state import Sweep, Trial, label, show
from vaeline.errors import UserError

UPWARDS = re.compile(
    r"elbo|reconstruction|active_units|psnr|mutual_information.*|.*accuracy.*|mig|disentanglement|informativeness"
)
DOWNWARDS = re.compile(r"nll|kl|mse|gap|bits_per_dimension.*|mmd|squared|total_correlation|frechet.*|prior_samples")
SHOWN = ("test.elbo", "test.reconstruction", "test.kl", "test.nll", "test.active_units")


def is_maximised(metric: str) -> bool:
    """Whether more is better, by the metric's name. Raises UserError where the name does not tell."""
    words = metric.split(".")
    if any(UPWARDS.fullmatch(word) for word in words):
        return True
    if any(DOWNWARDS.fullmatch(word) for word in words):
        return False
    raise UserError(f"--metric: is more of {metric!r} better or worse? Say --maximise or --minimise")


def ranked(sweep: Sweep) -> list[Trial]:
    """The best first; then those without the metric, failed or not there yet, by number."""
    sign = -1.0 if sweep.request.maximise else 1.0
    scores = {trial.number: sweep.score(trial) for trial in sweep.trials}

    def order(trial: Trial) -> tuple[bool, float, int]:
        score = scores[trial.number]
        return score is None, sign * score if score is not None else 0.0, trial.number

    return sorted(sweep.trials, key=order)


def best(sweep: Sweep) -> Trial | None:
    """The trial that ranks first, if any has the metric."""
    first = next(iter(ranked(sweep)), None)
    return first if first is not None and sweep.score(first) is not None else None


def columns(sweep: Sweep) -> tuple[list[str], list[str]]:
    """The keys and the metrics of the table: the ranking one first, then what is well known and there."""
    present = {name for trial in sweep.trials for name in trial.metrics}
    metric = sweep.request.metric
    return varied(sweep.axes), [metric, *(name for name in SHOWN if name in present and name != metric)]


def described(sweep: Sweep, trial: Trial) -> str:
    """`beta 0.5, latent_dim 8`: a trial by what is varied."""
    keys = varied(sweep.axes)
    return ", ".join(f"{label(key, keys)} {show(trial.values[key])}" for key in keys) or trial.name


def rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text."""
    keys, metrics = columns(sweep)
    header = ["rank", "trial", *(label(key, keys) for key in keys), *metrics, "s", "outcome"]
    body = []
    for rank, trial in enumerate(ranked(sweep), 1):
        values = [show(trial.values[key]) for key in keys]
        numbers = [_number(trial.metrics.get(name)) for name in metrics]
        place = str(rank) if sweep.score(trial) is not None else ""
        body.append([place, trial.name, *values, *numbers, f"{trial.seconds:.0f}", outcome(sweep, trial)])
    return header, body


def outcome(sweep: Sweep, trial: Trial) -> str:
    """A word, or the reason of a failure."""
    if trial.status == "failed":
        return f"failed: {trial.reason}"
    if trial.status == "done" and sweep.score(trial) is None:
        return f"no {sweep.request.metric} in its metrics"
    return trial.status


def to_csv(sweep: Sweep) -> str:
    """Every trial with all its metrics at full precision, the best first."""
    keys, _ = columns(sweep)
    metrics = list(dict.fromkeys(name for trial in ranked(sweep) for name in trial.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", *keys, "status", "reason", "model_digest", *metrics])
    for rank, trial in enumerate(ranked(sweep), 1):
        values = [show(value) if isinstance(value := trial.values[key], dict | list) else value for key in keys]
        place = rank if sweep.score(trial) is not None else ""
        numbers = [repr(trial.metrics[name]) if name in trial.metrics else "" for name in metrics]
        writer.writerow([place, trial.name, *values, trial.status, trial.reason, trial.digest, *numbers])
    return text.getvalue()


def to_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The table for MLflow and Prefect."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
