"""What a sweep leaves: `reports/sweeps/NAME/`, and the parent run in MLflow."""

import io
import warnings
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.ranking import best, ranked, result, rows, to_csv, to_markdown
from pipeline.sweep.space import show, to_values, varied
from pipeline.sweep.study import Sweep
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.plotting.charts import chart
from vaeline.tracking.sweeps import close_parent, open_parent


def write_reports(sweep: Sweep) -> Path:
    """Write the table as CSV and Markdown and the pictures; returns their folder."""
    folder = sweep.workspace.reports / "sweeps" / sweep.name
    for name, content in _files(sweep).items():
        write_file(folder / name, content)
    return folder


def _files(sweep: Sweep) -> dict[str, bytes]:
    texts = {"ranking.csv": to_csv(sweep), "ranking.md": to_markdown(*rows(sweep))}
    return {name: text.encode() for name, text in texts.items()} | pictures(sweep)


def pictures(sweep: Sweep) -> dict[str, bytes]:
    """PNG by file name; those for which two scored trials have what they show."""
    scored = [trial for trial in ranked(sweep) if trial.value is not None]
    drawn = _optuna_plots(sweep) if len(scored) > 1 and varied(sweep.space) else {}
    if len(points := [t for t in scored if {"test.kl", "test.reconstruction"} <= result(t)["metrics"].keys()]) > 1:
        drawn["rate_distortion.png"] = _rate_distortion(points)
    return drawn


def _optuna_plots(sweep: Sweep) -> dict[str, bytes]:
    """Optuna's pictures of what was varied, whatever the user's matplotlib settings are."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    keys, metric, drawn = varied(sweep.space), sweep.request.metric, {}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plots are experimental, importances of few trials vague
        mpl.rcdefaults()
        plt.switch_backend("agg")
        named: dict[str, Any] = {
            "parallel_coordinates.png": plots.plot_parallel_coordinate,
            "slice.png": plots.plot_slice,
            "importances.png": plots.plot_param_importances,
        }
        for name, plot in named.items():
            plot(sweep.study, params=keys, target_name=metric)
            buffer = io.BytesIO()
            plt.gcf().savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
            plt.close()
            drawn[name] = buffer.getvalue()
    return drawn


def _rate_distortion(trials: list[FrozenTrial]) -> bytes:
    """Rate KL against distortion -E_q[log p(x|z)], nats per test image (Alemi et al. 2018, Fixing a Broken ELBO).

    Both add up to -ELBO, so that points on one falling diagonal are equally good.
    """
    metrics = [result(trial)["metrics"] for trial in trials]
    rates, distortions = [m["test.kl"] for m in metrics], [-m["test.reconstruction"] for m in metrics]

    def draw(axes: Any) -> None:
        axes.scatter(rates, distortions)
        for rank, point in enumerate(zip(rates, distortions, strict=True), 1):
            axes.annotate(str(rank), point, (4, 4), textcoords="offset points")
        for rate, distortion in zip(rates, distortions, strict=True):
            axes.axline((rate, distortion), slope=-1, color="#dddddd", linewidth=0.8, zorder=0)
        axes.set_xlabel("rate: KL, nats per test image")
        axes.set_ylabel("distortion: $-$reconstruction, nats per test image")
        axes.set_title("numbered by rank; grey lines join equal ELBO")

    return chart("rate_distortion", "", draw).png


def begin_in_mlflow(sweep: Sweep) -> str:
    """Make or find the parent run, so that the trials' runs are its children; returns why not, or nothing."""
    asked = {"sweep.search": sweep.request.search, "sweep.metric": sweep.request.metric}
    for key, distribution in sweep.space.items():
        if isinstance(distribution, CategoricalDistribution):
            asked[key] = ", ".join(show(to_values({key: choice})[key]) for choice in distribution.choices)
        else:
            asked[key] = str(distribution)
    experiment = sweep.baseline.params["register"]["name"]
    try:
        run = open_parent(sweep.workspace, experiment, sweep.name, asked | {"sweep.trials": str(sweep.total)})
    except UserError as error:
        return str(error)
    sweep.study.set_user_attr("parent_run", run)
    return ""


def end_in_mlflow(sweep: Sweep) -> str:
    """Put the ranking and the pictures into the parent run; returns why not, or nothing."""
    if "parent_run" not in sweep.study.user_attrs and (away := begin_in_mlflow(sweep)):
        return away
    tags, metrics = {}, {}
    if chosen := best(sweep):
        tags = {"vaeline.sweep_best": chosen.user_attrs["name"], "mlflow.note.content": to_markdown(*rows(sweep))}
        metrics = {f"best/{sweep.request.metric.replace('.', '/')}": chosen.value or 0.0}
    failed = any(trial.state == TrialState.FAIL for trial in sweep.trials())
    try:
        close_parent(
            sweep.workspace,
            sweep.study.user_attrs["parent_run"],
            "FAILED" if failed else "FINISHED",
            metrics=metrics,
            tags=tags,
            files=_files(sweep),
            digests=[result(trial).get("digest", "") for trial in sweep.trials()],
        )
    except UserError as error:
        return str(error)
    return ""
