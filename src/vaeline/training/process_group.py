"""Several processes that train one model: each takes its part of every batch, the sums go round.

All of them draw the whole batch's noise and see the same order of images, so that a team of any size takes the steps
that one process takes, but for rounding. Alone, nothing here does anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """This process among `size`. Only rank 0, which leads, writes and reports."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and results and talks to the tracker."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def rows(self, count: int) -> tuple[slice, float]:
        """This process's rows of a batch of `count`, and which share of it they are: together each row once.

        Where a batch has fewer rows than the team processes, some get its first row, with a share of 0: there must
        be something to compute.
        """
        start, stop = self.rank * count // self.size, (self.rank + 1) * count // self.size
        return (slice(start, stop), (stop - start) / count) if start < stop else (slice(0, 1), 0.0)

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over the team of tensors of one dtype, the same bits in every process; one message."""
        if self.alone:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def any(self, mine: bool, device: torch.device) -> bool:
        """Whether it is so in some process; all must ask."""
        return mine if self.alone else bool(self.add_up([torch.full((), float(mine), device=device)])[0].item())

    def share(self, content: bytes, device: torch.device) -> bytes:
        """The leader's content, in every process."""
        if self.alone:
            return content
        size = torch.full((), len(content), dtype=torch.int64, device=device)
        dist.broadcast(size, 0)
        if not size.item():
            return b""
        data = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
        if self.leads:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return data.cpu().numpy().tobytes()


ALONE = Team()
