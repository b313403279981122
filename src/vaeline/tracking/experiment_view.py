"""How MLflow's pages show an experiment: tags that it reads, none of them promised by its documentation.

A saved view is named in the menu of the runs' page, and opens by `viewStateShareKey` in its address.
"""

import json

KEY = "vaeline"
ML_PAGES = "workflowType=machine_learning"  # in an address; without it MLflow opens its GenAI pages
COLUMNS = ("elbo", "nll", "bits_per_dimension_nll", "psnr")  # of the test split
SECTION = {"uuid": "bound", "name": "ELBO = reconstruction - KL", "display": True, "isReordered": True}


def view_address(experiment: str) -> str:
    """The experiment's charts in the saved view, after the server's address."""
    return f"/#/experiments/{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={KEY}&{ML_PAGES}"


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment: its kind, and the saved view, which shows the bound's terms first, two lines a chart."""
    charts = [_chart(f"train/{term}", f"validation/{term}") for term in ("elbo", "reconstruction", "kl")]
    columns = [*(f"metrics.`test/{name}`" for name in COLUMNS), "tags.`vaeline.decision`"]
    state = {"compareRunCharts": charts, "compareRunSections": [SECTION], "isAccordionReordered": True}
    saved = {"name": "ELBO, NLL, bits/dim", "createdAt": 0, "state": json.dumps(state | {"selectedColumns": columns})}
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{KEY}": json.dumps(saved)}


def _chart(*metrics: str) -> dict[str, object]:
    """A line chart of some metrics by step."""
    about = {"type": "LINE", "uuid": metrics[0], "metricSectionId": SECTION["uuid"], "runsCountToCompare": 10}
    scales = {"xAxisKey": "step", "yAxisKey": "metric", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "yAxisExpressions": []}
    return {**about, "metricKey": metrics[0], "selectedMetricKeys": list(metrics), **scales, **shared}
