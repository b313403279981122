import os
from pathlib import Path

import pytest

from pipeline.sweep.process import one_slot, slots


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with six cores and, where a test writes it, an nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_accelerators_the_cores_are_divided_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch):
    assert slots(2) == [{"VAELINE_THREADS": "3", "OMP_NUM_THREADS": "3"}] * 2
    assert [slots(jobs)[0]["VAELINE_THREADS"] for jobs in (4, 9)] == ["1", "1"], "never none"
    monkeypatch.setenv("VAELINE_THREADS", "5")
    assert slots(2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_accelerators_are_taken_in_turn_and_by_processes_of_their_own_one_each(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    (machine / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (machine / "nvidia-smi").chmod(0o755)
    device = "CUDA_VISIBLE_DEVICES"
    assert [slot[device] for slot in slots(3)] == ["0", "1", "0"]
    with one_slot() as first:
        with one_slot() as second, one_slot() as third:
            assert [first[device], second[device], third[device]] == ["0", "1", "0"], "more than there are share"
        with one_slot() as again:
            assert again[device] == "1"
    monkeypatch.setenv(device, "3,GPU-abc")
    assert [slot[device] for slot in slots(3)] == ["3", "GPU-abc", "3"]
    for hidden, kind in (("", "auto"), ("0", "cpu")):  # hidden by the user, or not wanted
        monkeypatch.setenv(device, hidden)
        monkeypatch.setenv("VAELINE_DEVICE", kind)
        assert "VAELINE_THREADS" in slots(1)[0]
