"""Process records: the same process is found again, and no other; those of flow runs."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.services import flow_run_processes
from pipeline.services.child_processes import ProcessRecord
from vaeline.io.workspace import Workspace


def test_a_record_is_read_back_and_ends_with_its_process(tmp_path: Path):
    """Mistake 22: pid reuse."""
    with subprocess.Popen(["sleep", "300"]) as process:
        record = ProcessRecord.of(process.pid, parent=1, address="http://a")
        record.write(tmp_path / "a.json")
        assert ProcessRecord.read(tmp_path / "a.json") == record
        assert record.lives
        assert not replace(record, started="earlier").lives
        assert not replace(record, started=f"{record.started}0").lives
        assert record.orphaned, "this process is its parent"
        process.kill()
    assert not record.lives
    assert record.orphaned
    assert not ProcessRecord.of(process.pid).lives


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"pid": 1}', '{"pid": 1, "started": "", "other": 1}', "[" * 9000, None, "pipe"]
)
def test_a_spoilt_record_counts_as_none(tmp_path: Path, text: str | None):
    if text == "pipe":
        os.mkfifo(tmp_path / "a.json")
    elif text is not None:
        (tmp_path / "a.json").write_text(text)
    assert ProcessRecord.read(tmp_path / "a.json") is None


def test_a_flow_run_whose_process_has_ended_is_found_until_it_is_removed(toy: Path):
    code = "from pipeline.services import flow_run_processes as f; from vaeline.io.workspace import Workspace"
    subprocess.run([sys.executable, "-c", f"{code}; f.record(Workspace(), 'one', worker=1)"], check=True)
    flow_run_processes.record(Workspace(), "two", worker=os.getppid())
    flow_run_processes.record(Workspace(), "two")
    kept = ProcessRecord.read(toy / ".vaeline" / "flow-runs" / "two.json")
    assert kept is not None
    assert kept.parent == os.getppid(), "the flow keeps the record that names its worker"
    assert list(flow_run_processes.ended(Workspace())) == ["one"]
    flow_run_processes.record_path(Workspace(), "one").unlink()
    assert list(flow_run_processes.ended(Workspace())) == []


def test_what_a_killed_worker_left_is_waited_for_and_then_killed(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flow_run_processes, "PATIENCE_S", 0.2)
    path = toy / ".vaeline" / "flow-runs" / "one.json"
    with subprocess.Popen(["sleep", "300"]) as process:
        record = ProcessRecord.of(process.pid)
        record.write(path)
        assert list(flow_run_processes.ended(Workspace())) == [], "not of a worker"
        replace(record, parent=1).write(path)
        assert list(flow_run_processes.ended(Workspace())) == ["one"]
        assert process.wait(10) == -signal.SIGKILL
