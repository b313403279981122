"""Fails on the upgrade of MLflow that moves or changes one of the private names in use."""

import json
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image

from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect, experiment_id, experiment_tags, view_address
from vaeline.tracking.mlflow_internals import MLFLOW_LOGGED_IMAGES, compress_image_size


def test_a_picture_is_stored_as_log_image_stores_it(store: Path):
    client = connect(current_workspace())
    run = client.create_run(experiment_id(client, "pictures", current_workspace())).info.run_id
    client.log_image(run, np.zeros((8, 8, 3), np.uint8), key="samples", step=3, synchronous=True)
    names = sorted(file.path for file in client.list_artifacts(run, "images"))
    assert [name.split("+timestamp+")[0] for name in names] == ["images/samples+step+3"] * 2
    assert [name.rpartition("+")[2].partition(".")[2] for name in names] == ["webp", "png"]
    assert client.get_run(run).data.tags[MLFLOW_LOGGED_IMAGES] == "True"
    assert compress_image_size(Image.new("L", (1024, 512))).size == (256, 128)


def test_an_experiment_gets_its_kind_and_a_saved_view_and_a_changed_one_stays(store: Path):
    client = connect(current_workspace())
    old = client.create_experiment("old", tags={"mlflow.sharedViewState.vaeline": "changed"})
    for name in ("new", "old"):
        experiment_id(client, name, current_workspace())
    assert client.get_experiment_by_name("new").tags == experiment_tags()
    assert client.get_experiment(old).tags == experiment_tags() | {"mlflow.sharedViewState.vaeline": "changed"}
    view = json.loads(experiment_tags()["mlflow.sharedViewState.vaeline"])
    charts = json.loads(view["state"])["compareRunCharts"]
    assert charts[0]["selectedMetricKeys"] == ["train/elbo", "validation/elbo"]
    scripts = Path(mlflow.__file__).parent.glob("server/js/build/static/js/*.js")
    pages = "".join(script.read_text(encoding="utf-8") for script in scripts)
    names = ["mlflow.experimentKind", "mlflow.sharedViewState.", "custom_model_development", "viewStateShareKey"]
    for name in [*names, *charts[0], *json.loads(view["state"]), "workflowType", view_address("1").split("=")[0][-15:]]:
        assert name in pages, name
