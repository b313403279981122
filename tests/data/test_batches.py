import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
