"""Names of MLflow that its documentation does not promise, all in one module, each with its reason.

`tests/tracking/test_mlflow_internals.py` fails on the upgrade that moves one.
"""

import logging
from typing import Any

from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

__all__ = ["MLFLOW_LOGGED_IMAGES", "compress_image_size", "system_monitors"]
# compress_image_size, MLFLOW_LOGGED_IMAGES: `log_image` gives a picture a random name, so that sent again after a lost
# answer it would be there twice; the uploader stores it under a name that stays, in the form in which the UI shows it.

log = logging.getLogger(__name__)


def system_monitors() -> list[Any]:
    """MLflow's own monitors of CPU, disk, network and GPU, those that work here.

    Its thread that runs them sends what it measures at once, and would hang with the server: the uploader puts their
    values into the outbox.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    for kind in kinds:
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError) as error:
            log.info("not measured: %s", error)
    return monitors
