"""What every test runs in: a home of its own, one thread, and none of the caller's settings."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["OMP_NUM_THREADS"] = "1"  # here: the plugins and the folders' conftest.py import torch
pytest_plugins = ("data_files", "registry_fixture", "workspaces")
HOME = pytest.StashKey[Path]()
FOREIGN = ("MLFLOW_", "VAELINE_", "DVC_", "PREFECT_", "GIT_", "XDG_")
# on a busy machine any example may take long
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module imports torch, MLflow or Prefect, or starts a process."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    config.addinivalue_line("filterwarnings", "ignore:.*Any type hint is inferred as AnyType")  # MLflow, of its classes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & leaves it ignored
    home = Path(tempfile.mkdtemp(prefix="vaeline-tests-"))
    config.stash[HOME] = home
    code = os.pathsep.join(str(config.rootpath / folder) for folder in ("src", "."))  # of processes started by tests
    fonts = config.rootpath / ".pytest_cache" / "matplotlib"  # kept: looking for fonts takes seconds
    os.environ |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # this interpreter's tools
        "HOME": str(home),
        "PYTHONPATH": code,
        "SHELL": "/bin/sh",  # as under cron and systemd: dash stays between DVC and a stage where bash makes way
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc-system"),
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MPLCONFIGDIR": str(fonts),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)
