"""The stage theory on a small real data set: what it writes, what it tells the tracker."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluated_workspace import PARAMS, events, set_up
from pipeline.stages import theory
from vaeline.theory import gradients, scales

HISTORY = (
    "epoch,step,train_elbo,train_reconstruction,train_kl,validation_elbo,validation_reconstruction,validation_kl,"
    "sigma,beta,learning_rate\n1,10,-3.0,-2.0,1.0,-3.5,-2.5,1.0,,1.0,0.001\n"
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAELINE_UPLOADER", "off")
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    (tmp_path / ".dvc").mkdir()
    section: dict[str, Any] = {"images": 5, "importance_samples": 10, "training_images": 50, "epochs": 1, "seed": 1}
    set_up(PARAMS | {"theory": section})
    Path("reports").mkdir()
    Path("reports/history.csv").write_text(HISTORY)
    monkeypatch.setattr(gradients, "REPEATS", 3)
    monkeypatch.setattr(gradients, "BATCH_PAIRS", 2)
    monkeypatch.setattr(scales, "STEPS", 10)
    return tmp_path


def test_the_page_and_its_numbers_are_written_and_logged_and_old_pictures_go(workspace: Path):
    old = Path("reports/theory/old.png")
    old.parent.mkdir()
    old.write_bytes(b"")
    theory.main()
    names = {path.name for path in Path("reports/theory").iterdir()}
    assert {"theory.md", "theory.html", "samples.png", "gap.png"} <= names
    assert "old.png" not in names
    assert json.loads(Path("reports/theory.json").read_text())["gap"]["applies"]
    logged = {(event["folder"], Path(event["file"]).name) for event in events(workspace, "artifact")}
    assert {("reports/theory", name) for name in names} | {("reports", "theory.json")} <= logged


def test_an_empty_field_of_the_history_is_none(workspace: Path):
    (row,) = theory.history(Path("reports/history.csv"))
    assert row["validation_kl"] == 1.0
    assert row["sigma"] is None
