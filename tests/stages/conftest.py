"""A workspace up to a model with random weights, as working folder."""

from pathlib import Path

import pytest

from evaluated_workspace import PARAMS, set_up


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAELINE_UPLOADER", "off")
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    (tmp_path / ".dvc").mkdir()
    set_up(PARAMS)
    return tmp_path
