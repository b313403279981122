"""A tiny repository with three stages, and a Prefect server, for what drives DVC."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.services.servers import free_port, prefect_server, started, wait_until_ready
from vaeline.io.workspace import Workspace
from workspaces import make_toy, tiny_clone, vaeline

OWN_CODE = {"PYTHONPATH": "src", "VAELINE_DEVICE": "cpu"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository, as working folder."""
    monkeypatch.chdir(make_toy(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Prefect server for all tests that are not about running without one: it saves each its seconds."""
    folder = tmp_path_factory.mktemp("prefect-server")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{folder}/prefect.db")
        server = prefect_server(Workspace(folder, folder), free_port(0))
        with started(server) as process:
            wait_until_ready(server, process)
            yield f"{server.address}/api"


@pytest.fixture
def own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages import the copy they run in, on the processor."""
    for name, value in OWN_CODE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A clone, and its first `vaeline run`; all tests of whole pipelines share it."""
    clone = tiny_clone(tmp_path_factory.mktemp("clone"))
    return clone, vaeline("run", cwd=clone, **OWN_CODE)


@pytest.fixture
def clone(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The clone after its first run."""
    return first_run[0]
