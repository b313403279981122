"""Where computation runs, and the numerics it runs with. `VAELINE_DEVICE` and `VAELINE_THREADS` decide."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from vaeline.errors import UserError
from vaeline.training.settings import whole_number

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def pick_device() -> torch.device:
    """The device that VAELINE_DEVICE (cpu | cuda | auto) asks for; also sets the VAELINE_THREADS threads.

    Raises UserError for another value, and where CUDA is asked for but absent.
    """
    if os.environ.get("VAELINE_THREADS"):
        torch.set_num_threads(whole_number("VAELINE_THREADS", 1, most=1024))
    wanted = os.environ.get("VAELINE_DEVICE") or "auto"
    if wanted not in ("cpu", "cuda", "auto"):
        raise UserError(f"VAELINE_DEVICE: allowed: cpu, cuda, auto; found {wanted!r}")
    present = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise UserError("VAELINE_DEVICE: is 'cuda', but PyTorch finds no usable CUDA device; allowed here: cpu, auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if present else torch.device("cpu")


def identity(device: torch.device, processes: int = 1) -> dict[str, str | int]:
    """What of the machine can change a result's last digits."""
    shared: dict[str, str | int] = {"torch": str(torch.__version__)} | (
        {"processes": processes} if processes > 1 else {}
    )
    if device.type == "cuda":
        return shared | {"device": torch.cuda.get_device_name(device), "precision": "bfloat16"}
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return shared | {"device": f"cpu {capability}", "precision": "float32", "threads": threads}


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
