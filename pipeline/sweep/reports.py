"""What a sweep leaves: the ranking and the pictures in `reports/sweeps/NAME/`, and the parent run in MLflow."""

import csv
import io
import warnings
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.process import Result
from pipeline.sweep.space import show, to_values, varied
from pipeline.sweep.study import Sweep
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.plotting.charts import chart
from vaeline.tracking.sweeps import close_parent, open_parent

SHOWN = ("test.elbo", "test.reconstruction", "test.kl", "test.nll", "test.active_units")


def ranked(sweep: Sweep) -> list[FrozenTrial]:
    """The best first; then those without a score, failed or not there yet, as they were drawn."""
    sign = -1.0 if sweep.maximise else 1.0
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
    return "done" if trial.state == TrialState.COMPLETE else "waiting"


def to_markdown(sweep: Sweep, width: int = 0) -> str:
    """The ranking with aligned columns: what is varied, the metric that ranks, then what is well known and there.

    Where `width` is given, columns that the trials' names or the CSV file have too are left out, then words are cut.
    """
    trials, keys = ranked(sweep), varied(sweep.space)
    present = {name for trial in trials for name in result(trial).get("metrics", {})}
    metrics = [sweep.metric, *(name for name in SHOWN if name in present and name != sweep.metric)]
    lines = [["rank", "trial", *keys, *metrics, "s", "outcome"]]
    for rank, trial in enumerate(trials, 1):
        numbers = [result(trial).get("metrics", {}).get(name) for name in metrics]
        cells = [str(rank) if trial.value is not None else "", trial.user_attrs["name"]]
        cells += [show(trial.user_attrs["values"][key]) for key in keys]
        cells += ["" if number is None else f"{number:.5g}" for number in numbers]
        cells += [f"{result(trial).get('seconds', 0):.0f}", status(trial)]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    columns = [list(column) for column in zip(*lines, strict=True)]

    def excess() -> int:
        return sum(3 + max(map(len, column)) for column in columns) + 1 - width if width else 0

    for name in ("s", *reversed(metrics[1:]), *reversed(keys)):
        columns = [column for column in columns if excess() <= 0 or column[0] != name]
    for column in (columns[-1], columns[1]):
        most = max(12, max(map(len, column)) - max(0, excess()))
        column[:] = [cell if len(cell) <= most else f"{cell[: most - 1]}…" for cell in column]
    widths = [max(map(len, column)) for column in columns]
    header, *rows = zip(*columns, strict=True)
    ruled = [header, ["-" * wide for wide in widths], *rows]
    padded = ([cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)] for row in ruled)
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def to_json(sweep: Sweep) -> dict[str, Any]:
    """The sweep for machines: every trial, the best first, and the decision of the registry's gate on the best."""
    trials, chosen = [], best(sweep)
    for rank, trial in enumerate(ranked(sweep), 1):
        ended = result(trial)
        numbers = {"rank": rank if trial.value is not None else None, "trial": trial.user_attrs["name"]}
        outcome = {"status": status(trial).partition(":")[0], "reason": ended.get("reason", "")}
        content = {"model_digest": ended.get("digest", ""), "metrics": ended.get("metrics", {})}
        trials.append(numbers | {"values": trial.user_attrs["values"]} | outcome | content)
    direction = "max" if sweep.maximise else "min"
    about = {"sweep": sweep.name, "metric": sweep.metric, "direction": direction, "gate": gate_verdict(sweep)}
    return about | {"best": chosen.user_attrs["name"] if chosen else None, "trials": trials}


def to_csv(sweep: Sweep) -> str:
    """Every trial with all its metrics at full precision, the best first."""
    rows: list[dict[str, Any]] = []
    for trial in to_json(sweep)["trials"]:
        values, metrics = trial.pop("values"), trial.pop("metrics")
        row = {"rank": trial.pop("rank") or "", "trial": trial.pop("trial")}
        row |= {key: show(value) if isinstance(value, dict | list) else value for key, value in values.items()}
        rows.append(row | trial | metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def gate_verdict(sweep: Sweep) -> str | None:
    """The decision of the registry's gate on the best trial; None where that was not asked."""
    chosen, stored = best(sweep), sweep.study.user_attrs
    return stored.get("verdict") if chosen and stored.get("completed") == chosen.user_attrs["name"] else None


def pictures(sweep: Sweep) -> dict[str, bytes]:
    """PNG by file name; those for which two scored trials have what they show."""
    scored = [trial for trial in ranked(sweep) if trial.value is not None]
    drawn = _optuna_plots(sweep) if len(scored) > 1 and varied(sweep.space) else {}
    points = [result(trial)["metrics"] for trial in scored]
    points = [point for point in points if {"test.kl", "test.reconstruction"} <= point.keys()]

    def rate_distortion(axes: Any) -> None:
        """Rate KL against distortion -E_q[log p(x|z)], which add up to -ELBO (Alemi et al. 2018)."""
        for rank, metrics in enumerate(points, 1):
            point = (metrics["test.kl"], -metrics["test.reconstruction"])
            axes.scatter(*point, color="C0")
            axes.annotate(str(rank), point, (4, 4), textcoords="offset points")
            axes.axline(point, slope=-1, color="#dddddd", linewidth=0.8, zorder=0)
        axes.set_xlabel("rate: KL, nats per test image")
        axes.set_ylabel("distortion: $-$reconstruction, nats per test image")
        axes.set_title("numbered by rank; grey lines join equal ELBO")

    return drawn | ({"rate_distortion.png": chart("", "", rate_distortion).png} if len(points) > 1 else {})


def _optuna_plots(sweep: Sweep) -> dict[str, bytes]:
    """Optuna's pictures of what was varied, whatever the user's matplotlib settings are."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    drawn = {}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plots are experimental, importances of few trials vague
        mpl.rcdefaults()
        plt.switch_backend("agg")
        named = {"parallel_coordinates": plots.plot_parallel_coordinate, "slice": plots.plot_slice}
        for name, plot in (named | {"importances": plots.plot_param_importances}).items():
            plot(sweep.study, params=varied(sweep.space), target_name=sweep.metric)
            buffer = io.BytesIO()
            plt.gcf().savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
            plt.close()
            drawn[f"{name}.png"] = buffer.getvalue()
    return drawn


def write_reports(sweep: Sweep) -> Path:
    """Write the table as CSV and Markdown and the pictures; returns their folder."""
    folder = sweep.workspace.reports / "sweeps" / sweep.name
    tables = {"ranking.csv": to_csv(sweep).encode(), "ranking.md": to_markdown(sweep).encode()}
    for name, content in (tables | pictures(sweep)).items():
        write_file(folder / name, content)
    return folder


def report_to_mlflow(sweep: Sweep, folder: Path | None = None) -> str:
    """Make or find the parent run, whose children the trials' runs are; returns why not, or nothing.

    With the `folder` of the reports, once the trials have ended, the outcome is put into it.
    """
    asked = {"sweep.search": sweep.request.search, "sweep.metric": sweep.request.metric}
    for key, distribution in sweep.space.items():
        asked[key] = str(distribution)
        if isinstance(distribution, CategoricalDistribution):
            asked[key] = ", ".join(show(to_values({key: choice})[key]) for choice in distribution.choices)
    asked["sweep.trials"] = str(sweep.total)
    try:
        run = open_parent(sweep.workspace, sweep.baseline.params["register"]["name"], sweep.name, asked)
        sweep.study.set_user_attr("parent_run", run)
        if folder:
            tags, metrics = {}, {}
            if chosen := best(sweep):
                tags = {"vaeline.sweep_best": chosen.user_attrs["name"], "mlflow.note.content": to_markdown(sweep)}
                metrics = {f"best/{sweep.metric.replace('.', '/')}": chosen.value or 0.0}
            ending = "FAILED" if sweep.count(TrialState.FAIL) else "FINISHED"
            digests = [result(trial).get("digest", "") for trial in sweep.trials()]
            close_parent(sweep.workspace, run, ending, metrics=metrics, tags=tags, folder=folder, digests=digests)
    except UserError as error:
        return str(error)
    return ""
