"""Stage report: the page is written whole and attached to the model's run."""

import json
from pathlib import Path

from pipeline.stages import evaluate, report, sample
from small_theory_context import EPOCH
from uploads import outbox_events, outbox_runs
from vaeline.training.history import to_csv


def test_the_page_is_written_and_attached_to_the_run(workspace: Path):
    evaluate.main()
    sample.main()
    Path("reports/history.csv").write_text(to_csv([EPOCH]))
    Path("reports/theory").mkdir()
    Path("reports/theory/claims.json").write_text("[]")
    decision = {"digest": "d", "name": "shapes", "decision": "promoted", "reasons": ["no champion before it"]}
    Path("reports/registration.json").write_text(json.dumps(decision))
    report.main()
    page = Path("reports/index.html").read_text()
    assert "no champion before it" in page
    (attached,) = [e for e in outbox_events(workspace, "artifact") if e["name"] == "index.html"]
    assert attached["folder"] == "reports"
    (run,) = outbox_runs(workspace)
    assert run.file(attached["digest"]).decode() == page
