"""Arrays larger than memory."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vaeline.io.npy import blocks, npy_file, scratch, taken


def resident_bytes() -> int:
    """What of this process's memory is pages of files."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_blocks_cover_an_array_once_and_its_file_leaves_the_memory(tmp_path: Path, mode: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(5 << 20, dtype=np.uint8).reshape(-1, 1024))
    array = np.load(tmp_path / "a.npy", mmap_mode=mode)
    before, seen = resident_bytes(), 0
    for block in blocks(array[:, 1:], 1 << 20):
        seen += int(array[block, 1:].sum(dtype=np.int64))
    assert resident_bytes() - before < 1 << 20
    rows = np.random.default_rng(0).permutation(len(array))
    np.testing.assert_array_equal(taken(array, rows)[:, :9], array[rows, :9])
    assert seen == np.arange(5 << 20, dtype=np.uint8).reshape(-1, 1024)[:, 1:].sum(dtype=np.int64)


@pytest.mark.parametrize("mode", ["r+", "c", None])
def test_what_was_written_into_an_array_stays(tmp_path: Path, mode: str | None) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 64), np.uint8))
    for array in (np.load(tmp_path / "a.npy", mmap_mode=mode), scratch((100, 64), tmp_path)):
        for block in blocks(array, 640):
            array[block] = np.arange(100)[block, None]
        assert (array == np.arange(100)[:, None]).all()


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        scratch((1 << 50,), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_room_is_there_also_where_none_can_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    scratch((100, 64), tmp_path)[99] = 1


def test_blocks_are_written_in_order_and_digested_as_the_file_is(tmp_path: Path):
    rows, digest = np.arange(60, dtype=np.int32).reshape(20, 3), hashlib.sha256()
    with npy_file(tmp_path / "rows.npy", rows.shape, np.int64, digest) as write:
        for start in range(0, 20, 7):
            write(rows[start : start + 7])
    assert np.load(tmp_path / "rows.npy").tolist() == rows.tolist()
    assert digest.hexdigest() == hashlib.sha256((tmp_path / "rows.npy").read_bytes()).hexdigest()


@pytest.mark.parametrize("count", [1, 5], ids=["the last block", "one before"])
def test_a_block_that_cannot_be_written_is_an_error(count: int):
    block = np.zeros((1 << 16,), np.uint8)
    with pytest.raises(OSError, match="No space left"), npy_file(Path("/dev/full"), block.shape, np.uint8) as write:
        for _ in range(count):
            write(block)
