"""Fails on the upgrade of MLflow that moves or changes one of the private names in use."""

from pathlib import Path

import numpy as np
from PIL import Image

from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect, experiment_id
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
