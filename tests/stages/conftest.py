"""Workspaces up to a model with random weights, as working folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evaluated_workspace import PARAMS, set_up


@contextmanager
def entered(folder: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VAELINE_UPLOADER", "off")
        patch.setenv("VAELINE_DEVICE", "cpu")
        yield folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / ".dvc").mkdir()
    with entered(folder):
        set_up(PARAMS)
    return folder


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """One of the test's own."""
    with entered(shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)):
        yield tmp_path


@pytest.fixture(scope="session")
def measured(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One after the stages evaluate and sample, not to be changed."""
    from pipeline.stages import evaluate, sample

    folder = tmp_path_factory.mktemp("measured")
    with entered(shutil.copytree(prepared, folder, dirs_exist_ok=True)):
        evaluate.main()
        sample.main()
    return folder
