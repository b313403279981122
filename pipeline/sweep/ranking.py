"""Order of a sweep's trials by the metric, and the table as CSV and Markdown."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.space import label, show, varied
from pipeline.sweep.study import Result, Sweep
from vaeline.errors import UserError

UPWARDS = re.compile(
    r"elbo|reconstruction|active_units|psnr|mutual_information.*|.*accuracy.*|mig|disentanglement|informativeness"
)
DOWNWARDS = re.compile(r"nll|kl|mse|gap|bits_per_dimension.*|mmd|squared|total_correlation|frechet.*|prior_samples")
SHOWN = ("test.elbo", "test.reconstruction", "test.kl", "test.nll", "test.active_units")
STATES = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}  # others: waiting


def parse_metric(text: str) -> tuple[str, bool]:
    """The metric of `[max:|min:]METRIC`, and whether more is better. Raises UserError where the name does not tell."""
    prefix, colon, metric = text.rpartition(":")
    if colon and prefix in ("max", "min"):
        return metric, prefix == "max"
    for pattern, more_is_better in ((UPWARDS, True), (DOWNWARDS, False)):
        if not colon and any(pattern.fullmatch(word) for word in text.split(".")):
            return text, more_is_better
    raise UserError(f"--metric: found {text!r}, whose direction is not known; allowed: max:METRIC or min:METRIC")


def ranked(sweep: Sweep) -> list[FrozenTrial]:
    """The best first; then those without a score, failed or not there yet, as they were drawn."""
    sign = -1.0 if sweep.request.maximise else 1.0
    return sorted(sweep.trials(), key=lambda trial: (trial.value is None, sign * (trial.value or 0.0)))


def best(sweep: Sweep) -> FrozenTrial | None:
    """The trial that ranks first, if any has a score."""
    return next((trial for trial in ranked(sweep) if trial.value is not None), None)


def result(trial: FrozenTrial) -> Result:
    """What became of a trial; empty while it has not ended."""
    return trial.user_attrs.get("result", Result())  # type: ignore[no-any-return]


def status(trial: FrozenTrial) -> str:
    """A word, or the reason of a failure."""
    if trial.state == TrialState.FAIL:
        return f"failed: {result(trial).get('reason', 'cut off')}"
    return STATES.get(trial.state, "waiting")


def rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text: the metric that ranks first, then what is well known and there."""
    trials, keys, metric = ranked(sweep), varied(sweep.space), sweep.request.metric
    present = {name for trial in trials for name in result(trial).get("metrics", {})}
    metrics = [metric, *(name for name in SHOWN if name in present and name != metric)]
    header = ["rank", "trial", *(label(key, keys) for key in keys), *metrics, "s", "outcome"]
    body = []
    for rank, trial in enumerate(trials, 1):
        numbers = [result(trial).get("metrics", {}).get(name) for name in metrics]
        cells = [str(rank) if trial.value is not None else "", trial.user_attrs["name"]]
        cells += [show(trial.user_attrs["values"][key]) for key in keys]
        cells += ["" if number is None else f"{number:.5g}" for number in numbers]
        body.append([*cells, f"{result(trial).get('seconds', 0):.0f}", status(trial)])
    return header, body


def to_csv(sweep: Sweep) -> str:
    """Every trial with all its metrics at full precision, the best first."""
    trials, keys = ranked(sweep), varied(sweep.space)
    metrics = list(dict.fromkeys(name for trial in trials for name in result(trial).get("metrics", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", *keys, "status", "reason", "model_digest", *metrics])
    for rank, trial in enumerate(trials, 1):
        values, ended = trial.user_attrs["values"], result(trial)
        cells: list[Any] = [rank if trial.value is not None else "", trial.user_attrs["name"]]
        cells += [show(values[key]) if isinstance(values[key], dict | list) else values[key] for key in keys]
        cells += [status(trial).partition(":")[0], ended.get("reason", ""), ended.get("digest", "")]
        writer.writerow([*cells, *(ended.get("metrics", {}).get(name, "") for name in metrics)])
    return text.getvalue()


def to_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The table for MLflow and Prefect."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
