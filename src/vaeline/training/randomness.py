"""Every random number of a training is a function of (seed, stream, number): of the step, the epoch, the batch."""

import hashlib

import torch
from torch import Tensor


def mix(seed: int, stream: str, number: int = 0) -> int:
    """A 63-bit seed: different arguments, unrelated seeds."""
    digest = hashlib.sha256(f"{seed}/{stream}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch sees `count` images: int64, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, "permutation", epoch)))


class Noise:
    """Generator of noise on a device, seeded anew for each (stream, number)."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.generator = seed, torch.Generator(device)

    def restart(self, stream: str, number: int) -> None:
        """What follows is a function of (seed, stream, number)."""
        self.generator.manual_seed(mix(self.seed, stream, number))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, shape: torch.Size) -> Tensor:
        """Midpoints of 2^16 equal bins of (0, 1), as fine as (v + noise) / 256 in float32; a third of rand's time."""
        count = shape.numel()
        draws = torch.empty(-(-count // 4), dtype=torch.int64, device=self.generator.device)
        draws.random_(-(2**63), None, generator=self.generator)
        sixteen_bits = draws.view(torch.int16)[:count].view(shape)  # -2^15 ... 2^15 - 1
        return sixteen_bits.to(torch.float32).mul_(2**-16).add_(0.5 + 2**-17)
