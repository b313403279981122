import os
from pathlib import Path

import pytest

from pipeline.sweep.trial import one_slot, slots


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with six cores and, where a test writes it, an nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    return tmp_path


def accelerators(machine: Path, count: int) -> None:
    program = machine / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {number}\n" for number in range(count)))
    program.chmod(0o755)


def test_without_accelerators_the_cores_are_divided_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch):
    assert slots(2) == [{"VAELINE_THREADS": "3", "OMP_NUM_THREADS": "3"}] * 2
    assert slots(4)[0]["VAELINE_THREADS"] == "1"
    assert slots(9)[0]["VAELINE_THREADS"] == "1", "never none"
    monkeypatch.setenv("VAELINE_THREADS", "5")
    assert slots(2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_accelerators_are_taken_in_turn(machine: Path, monkeypatch: pytest.MonkeyPatch):
    accelerators(machine, 2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(3)] == ["3", "GPU-abc", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in slots(1)[0], "the user hid them"
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "VAELINE_THREADS" in slots(1)[0]


def test_processes_that_know_nothing_of_each_other_take_different_accelerators(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(machine))
    accelerators(machine, 2)
    with one_slot() as first:
        with one_slot() as second, one_slot() as third:
            assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["0", "1"]
            assert third["CUDA_VISIBLE_DEVICES"] == "0", "more than there are share"
        with one_slot() as again:
            assert again["CUDA_VISIBLE_DEVICES"] == "1"
