import pytest
import torch

from small_training import CPU
from vaeline.errors import UserError
from vaeline.training.device import identity, keep_freed_memory, pick_device, reproducible

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@without_cuda
def test_cuda_asked_for_but_absent_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAELINE_DEVICE", "cuda")
    with pytest.raises(UserError, match=r"^VAELINE_DEVICE: is 'cuda', but .* allowed here: cpu, auto$"):
        pick_device()


@without_cuda
@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_cuda_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch, wanted: str):
    monkeypatch.setenv("VAELINE_DEVICE", wanted)
    assert pick_device() == CPU


@pytest.mark.parametrize(
    ("name", "value"),
    [("VAELINE_DEVICE", "gpu"), ("VAELINE_THREADS", "0"), ("VAELINE_THREADS", "-1"), ("VAELINE_THREADS", "two")],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name}: .*{value}"):
        pick_device()


def test_threads_are_set_and_part_of_the_identity(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("VAELINE_THREADS", "2")
        monkeypatch.setenv("VAELINE_DEVICE", "cpu")
        assert identity(pick_device())["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_reproducible_numerics_last_as_long_as_the_block():
    tiny = torch.full((2,), 1e-30)
    with reproducible(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert (tiny * 1e-10).tolist() == [0.0, 0.0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tiny * 1e-10).min() > 0


def test_keeping_freed_memory_is_harmless():
    keep_freed_memory()
    assert torch.ones(1000).sum() == 1000
