import resource
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from vaeline.data import batches
from vaeline.data.batches import ImageSource, Resident, Streamed, open_images
from vaeline.training.randomness import permutation

CPU = torch.device("cpu")


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """25 images in a file, as training finds them."""
    images = np.random.default_rng(1).integers(0, 256, (25, 1, 8, 8), np.uint8)
    np.save(tmp_path / "train.npy", images)
    return np.load(tmp_path / "train.npy", mmap_mode="r")


@pytest.mark.parametrize("holder", [Resident, Streamed])
@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_batches_follow_the_order_from_any_batch_on_and_the_last_holds_what_is_left(
    mapped: np.ndarray, holder: Callable[..., ImageSource], skip: int
):
    order = permutation(1, 0, 25)
    found = list(holder(mapped, CPU).batches(order.split(8)[skip:]))
    assert [len(batch) for batch in found] == [8, 8, 8, 1][skip:]
    assert all(batch.dtype == torch.uint8 for batch in found)
    for batch, chosen in zip(found, order.split(8)[skip:], strict=True):
        assert np.array_equal(batch.numpy(), np.asarray(mapped)[chosen.numpy()])


def test_the_reader_ends_with_its_batches_even_if_they_are_not_all_used(mapped: np.ndarray):
    before = threading.active_count()
    reading = Streamed(mapped, CPU).batches(permutation(1, 0, 25).split(8))
    next(reading)
    reading.close()
    assert threading.active_count() == before


def test_what_does_not_fit_stays_in_its_file(mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(open_images(mapped, CPU), Resident)
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 2 * mapped.nbytes - 1)
    assert isinstance(open_images(mapped, CPU), Streamed)


def test_where_linux_does_not_say_what_is_free_half_the_memory_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(batches, "PROC", tmp_path / "none")  # as on macOS
    assert batches._free_bytes(CPU) == pytest.approx(psutil.virtual_memory().total / 2, rel=0.05)


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_what_is_free_ends_at_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch, limit: int):
    used = batches._numbers(Path("/proc/self/status"))["VmSize" if limit == resource.RLIMIT_AS else "VmData"] << 10
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + (1 << 20) if which == limit else -1, -1))
    assert 0 < batches._free_bytes(CPU) <= 9 << 20


@pytest.mark.parametrize(
    ("kind", "most", "used"), [("", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss")]
)
@pytest.mark.parametrize("within", ["a/b", ""])
def test_what_is_free_ends_at_the_control_groups_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, most: str, used: str, within: str
):
    """In version 2 and 1, and in a container, whose own group is the root of those that it sees."""
    for name, text in (("self/status", ""), ("meminfo", "MemAvailable: 9999999 kB"), ("self/cgroup", f"4:{kind}:/a/b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(batches, "PROC", tmp_path)
    monkeypatch.setattr(batches, "GROUPS", {kind: (tmp_path, most, used)})
    (folder := tmp_path / within).mkdir(parents=True, exist_ok=True)
    (folder / most).write_text("max\n")
    assert batches._free_bytes(CPU) == 9999999 << 10
    (folder / most).write_text("5000\n")
    (folder / "memory.stat").write_text(f"cache 999999\n{used} 2000\n")
    assert batches._free_bytes(CPU) == 3000
