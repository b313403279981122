"""Several processes that train one model: each takes its rows of every batch, sums are all-reduced.

All draw the whole batch's noise and see the same order of images: a group takes the steps of one process, but for
rounding.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=5)  # of a message
STORE = "VAELINE_GROUP_STORE"  # variable: URL of the file in which the processes meet, in place of torchrun's server


class PeerLostError(Exception):
    """Another process of the group has ended, or cannot be reached."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `size`. Only rank 0 writes checkpoints and results and reports to the tracker."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def rows(self, count: int) -> tuple[slice, float]:
        """This process's rows of a batch of `count`, and their fraction of it; where there are none, one and 0."""
        start, stop = self.rank * count // self.size, (self.rank + 1) * count // self.size
        return (slice(start, stop), (stop - start) / count) if start < stop else (slice(0, 1), 0.0)

    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over the group of tensors of one dtype, the same bits in every process; one message."""
        if self.is_single:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:  # of gloo and NCCL, which have no class of their own for it
            raise PeerLostError(f"process {self.rank} ends: it lost another process of the group") from error
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set in some process; all must call this."""
        return flag if self.is_single else bool(self.all_reduce([torch.full((), float(flag), device=device)])[0].item())

    def broadcast(self, content: bytes, device: torch.device) -> bytes:
        """Rank zero's content, in every process: a sum to which the others add zeros."""
        own = content if self.is_rank_zero else b""
        (size,) = self.all_reduce([torch.tensor(len(own), device=device)])
        data = torch.zeros(int(size.item()), dtype=torch.uint8, device=device)
        if not len(data):
            return b""
        if own:
            data.copy_(torch.frombuffer(bytearray(own), dtype=torch.uint8))
        return self.all_reduce([data])[0].cpu().numpy().tobytes()


SINGLE = ProcessGroup()


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """The group that torchrun's RANK and WORLD_SIZE describe (NCCL on GPUs, gloo on CPUs), or a single process."""
    if "RANK" not in os.environ:
        yield SINGLE
        return
    group = ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    backend, method = "nccl" if device.type == "cuda" else "gloo", os.environ.get(STORE, "env://")
    dist.init_process_group(backend, method, rank=group.rank, world_size=group.size, timeout=TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group()
