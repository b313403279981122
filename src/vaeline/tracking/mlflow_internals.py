"""Names of MLflow that its documentation does not promise, all in one module, each with its reason.

`tests/tracking/test_mlflow_internals.py` fails on the upgrade that moves one.
"""

from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

__all__ = ["MLFLOW_LOGGED_IMAGES", "compress_image_size"]
# compress_image_size, MLFLOW_LOGGED_IMAGES: `log_image` gives a picture a random name, so that sent again after a lost
# answer it would be there twice; the uploader stores it under a name that stays, in the form in which the UI shows it.
