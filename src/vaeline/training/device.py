"""What the environment decides: device, threads and the intervals of reports; and the numerics of a device."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils import deterministic

from vaeline.core.model import VAE
from vaeline.errors import UserError

N = TypeVar("N", int, float)
WORK = 2**30  # floating-point operations; 784-400-400-20 on batches of 128 takes 0.7 of it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@dataclass(frozen=True)
class Settings:
    """How often training writes and reports; the result does not depend on it."""

    checkpoint_seconds: float = 20.0  # VAELINE_CHECKPOINT_SECONDS
    log_every: int = 50  # steps; VAELINE_LOG_EVERY

    @classmethod
    def from_environment(cls) -> "Settings":
        """Raises UserError where a variable is no number or not allowed."""
        seconds = number("VAELINE_CHECKPOINT_SECONDS", cls.checkpoint_seconds, least=0, most=10**9)
        return cls(seconds, number("VAELINE_LOG_EVERY", cls.log_every, most=10**9))


def number(name: str, default: N, least: int = 1, most: int = 1024) -> N:
    """An environment variable of the default's type, from `least` to `most`. Raises UserError for anything else."""
    text = os.environ.get(name) or str(default)
    with suppress(ValueError):
        value = type(default)(text)
        if least <= value <= most:
            return value
    whole = "whole number" if isinstance(default, int) else "number"
    raise UserError(f"{name}: must be a {whole} from {least} to {most}, found {text!r}")


def pick_device() -> torch.device:
    """The device that VAELINE_DEVICE (cpu | cuda | auto) asks for; also sets the VAELINE_THREADS threads.

    Raises UserError for another value, and where CUDA is asked for but absent.
    """
    if os.environ.get("VAELINE_THREADS"):
        torch.set_num_threads(number("VAELINE_THREADS", 1))
    wanted = os.environ.get("VAELINE_DEVICE") or "auto"
    if wanted not in ("cpu", "cuda", "auto"):
        raise UserError(f"VAELINE_DEVICE: allowed: cpu, cuda, auto; found {wanted!r}")
    present = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise UserError("VAELINE_DEVICE: is 'cuda', but PyTorch finds no usable CUDA device; allowed here: cpu, auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if present else torch.device("cpu")


@contextmanager
def few_threads(model: VAE, images: int) -> Iterator[None]:
    """At most a CPU thread for each `WORK` of a step on so many images: more would wait for each other, not work."""
    from torch.utils.flop_counter import FlopCounterMode  # which most programs that pick a device do not need

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.decode(model.encode(torch.zeros(1, *model.shape)).mean)
    work = 3 * images * forward.get_total_flops()  # the backward pass takes twice the forward's
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, work // WORK)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_precision(wanted: str, device: torch.device) -> str:
    """What `train.precision` comes to on the device. Raises UserError for bfloat16 on a processor without it."""
    fast = torch.cpu._is_avx512_bf16_supported()  # AMX has that too
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bfloat16" and not fast:
        raise UserError("train.precision: bfloat16 is slower than float32 on this device; allowed here: float32, auto")
    return wanted if wanted != "auto" else "bfloat16" if fast else "float32"


def identity(device: torch.device, processes: int = 1, precision: str = "float32") -> dict[str, str | int]:
    """What of the machine can change a result's last digits."""
    found: dict[str, str | int] = {"torch": str(torch.__version__), "precision": precision}
    if processes > 1:
        found["processes"] = processes
    if device.type == "cuda":
        return found | {"device": torch.cuda.get_device_name(device)}
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return found | {"device": f"cpu {capability}", "threads": threads}


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms, and no denormal numbers, on which a processor is a hundred times slower."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        torch.set_flush_denormal(False)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step: giving it back and faulting it in again costs a quarter."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # bytes; the largest it takes
        mallopt(M_TRIM_THRESHOLD, 512 << 20)
