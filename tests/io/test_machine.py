import os

import psutil
import pytest

from vaeline.io.machine import cores, memory


def test_only_the_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    assert cores() == len(psutil.Process().cpu_affinity())
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert cores() == 1000


def test_the_memory_is_all_that_there_is():
    assert memory() == pytest.approx(psutil.virtual_memory().total, rel=0.05)
