"""Stages theory and report on a small real data set: what they write and what goes to the run."""

import json
import shutil
from pathlib import Path

import pytest

from evaluated_workspace import PARAMS, set_up
from pipeline.stages import report, theory
from small_theory_context import EPOCH, hurry
from uploads import outbox_events, outbox_runs
from vaeline.training.history import to_csv


def test_claims_pictures_and_numbers_are_written_and_logged_and_old_pictures_go_and_all_is_on_the_page(
    workspace: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
):
    section = {"images": 5, "importance_samples": 10, "training_images": 50, "epochs": 1, "seed": 1}
    set_up(PARAMS | {"theory": section})
    hurry(monkeypatch)
    shutil.copytree(measured / "reports", "reports")
    old = Path("reports/theory/old.png")
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    Path("reports/history.csv").write_text(to_csv([EPOCH]))
    theory.main()
    names = {path.name for path in Path("reports/theory").iterdir()}
    assert {"claims.json", "samples.png", "gap_1.png"} <= names
    assert "old.png" not in names
    assert json.loads(Path("reports/theory.json").read_text())["gap"]["applies"]
    logged = {(event["folder"], event["name"]) for event in outbox_events(workspace, "artifact")}
    assert {("reports/theory", name) for name in names} | {("reports", "theory.json")} <= logged

    decision = {"digest": "d", "name": "shapes", "decision": "promoted", "reasons": ["no champion before it"]}
    Path("reports/registration.json").write_text(json.dumps(decision))
    report.main()
    page = Path("reports/index.html").read_text()
    assert "no champion before it" in page
    (attached,) = [e for e in outbox_events(workspace, "artifact") if e["name"] == "index.html"]
    assert attached["folder"] == "reports"
    (run,) = outbox_runs(workspace)
    assert run.file(attached["digest"]).decode() == page
