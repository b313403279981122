"""Process records: the same process is found again, and no other."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.services.child_processes import ProcessRecord


def test_a_record_is_read_back_and_ends_with_its_process(tmp_path: Path):
    with subprocess.Popen(["sleep", "300"]) as process:
        record = ProcessRecord.of(process.pid, parent=1, address="http://a")
        record.write(tmp_path / "a.json")
        assert ProcessRecord.read(tmp_path / "a.json") == record
        assert record.lives
        assert record.orphaned, "this process is its parent"
        process.kill()
    assert not record.lives
    assert record.orphaned
    assert not ProcessRecord.of(process.pid).lives


def test_a_number_used_again_is_another_process():
    """Mistake 22: pid reuse."""
    record = ProcessRecord.of(os.getpid())
    assert record.lives
    assert not replace(record, started="earlier").lives
    assert not replace(record, started=f"{record.started}0").lives


@pytest.mark.parametrize("text", ["{", "[]", '{"pid": 1}', '{"pid": 1, "started": "", "other": 1}', None])
def test_a_spoilt_record_counts_as_none(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert ProcessRecord.read(tmp_path / "a.json") is None
