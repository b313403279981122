import pytest
import torch

from small_training import CPU, model
from vaeline import config
from vaeline.errors import UserError
from vaeline.training.build import build_model
from vaeline.training.device import (
    Settings,
    few_threads,
    identity,
    keep_freed_memory,
    number,
    pick_device,
    pick_precision,
    reproducible,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_device_is_the_cpu_or_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    for wanted in ("auto", "cpu"):
        monkeypatch.setenv("VAELINE_DEVICE", wanted)
        assert pick_device() == CPU
    monkeypatch.setenv("VAELINE_DEVICE", "cuda")
    with pytest.raises(UserError, match=r"^VAELINE_DEVICE: is 'cuda', but .* allowed here: cpu, auto$"):
        pick_device()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert Settings.from_environment() == Settings(checkpoint_seconds=20.0, log_every=50)
    monkeypatch.setenv("VAELINE_CHECKPOINT_SECONDS", "1.5")
    monkeypatch.setenv("VAELINE_LOG_EVERY", "7")
    assert Settings.from_environment() == Settings(checkpoint_seconds=1.5, log_every=7)


@pytest.mark.parametrize(
    ("name", "allowed", "values"),
    [
        ("VAELINE_CHECKPOINT_SECONDS", "must be a number from 0", ["-1", "soon", "nan", "inf"]),
        ("VAELINE_LOG_EVERY", "must be a whole number from 1", ["0", "2.5"]),
        ("VAELINE_THREADS", "must be a whole number from 1 to 1024", ["0", "-1", "two", "1025"]),
        ("VAELINE_NPROC", "must be a whole number from 1 to 1024", ["0", "2.5", "1025"]),
        ("VAELINE_DEVICE", "allowed: cpu, cuda, auto", ["gpu"]),
    ],
)
def test_a_wrong_setting_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, name: str, allowed: str, values: list[str]):
    for value in values:
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"^{name}: {allowed}.* found '{value}'$"):
            (pick_device(), Settings.from_environment(), number("VAELINE_NPROC", 1))


def test_threads_are_set_and_part_of_the_identity(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    assert before == 1, "tests/conftest.py sets it before torch is imported"
    try:
        monkeypatch.setenv("VAELINE_THREADS", "2")
        monkeypatch.setenv("VAELINE_DEVICE", "cpu")
        assert identity(pick_device())["threads"] == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("hidden", "images", "wanted"), [(400, 128, 1), (1024, 128, 1), (1024, 512, 4), (1024, 16384, 64)]
)
def test_a_step_takes_no_more_threads_than_it_has_work_for(
    monkeypatch: pytest.MonkeyPatch, hidden: int, images: int, wanted: int
):
    set_to, section = list[int](), model(network=config.Mlp(kind="mlp", hidden=[hidden]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with few_threads(build_model(section, (1, 28, 28), "elbo", seed=1), images):
        pass
    assert set_to == [wanted, 64]


def test_the_precision_is_what_the_device_computes_faster_and_a_slower_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert pick_precision("float32", CPU) == "float32"
        assert pick_precision("auto", CPU) == ("bfloat16" if fast else "float32")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
        assert pick_precision("auto", torch.device("cuda")) == ("bfloat16" if fast else "float32")
    with pytest.raises(UserError, match=r"^train\.precision: bfloat16 is slower .* allowed here: float32, auto$"):
        pick_precision("bfloat16", CPU)


def test_reproducible_numerics_last_as_long_as_the_block():
    keep_freed_memory()
    tiny = torch.full((2,), 1e-30)
    with reproducible(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert (tiny * 1e-10).tolist() == [0.0, 0.0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tiny * 1e-10).min() > 0
