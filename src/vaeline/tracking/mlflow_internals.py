"""Names of MLflow that its documentation does not promise, all in one module, each with its reason.

`tests/tracking/test_mlflow_internals.py` fails on the upgrade that moves one.
"""

from contextlib import suppress
from functools import cache
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

__all__ = ["MLFLOW_LOGGED_IMAGES", "compress_image_size", "system_monitors"]
# compress_image_size, MLFLOW_LOGGED_IMAGES: `log_image` gives a picture a random name, so that sent again after a lost
# answer it would be there twice; the uploader stores it under a name that stays, in the form in which the UI shows it.


@cache
def system_monitors() -> list[Any]:
    """Monitors of CPU, disk, network and, where there is one, GPU.

    MLflow's thread that runs them sends at once, and ends with the first failure: the uploader uses the outbox.
    """
    always: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
    where_there_is_one: Any = GPUMonitor
    monitors = [kind() for kind in always]
    with suppress(ImportError, RuntimeError):
        monitors.append(where_there_is_one())
    return monitors
