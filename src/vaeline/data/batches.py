"""Batches of uint8 images on a device: from memory where the data set fits, else read ahead from its file."""

import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaeline.config.data import Shape
from vaeline.io.machine import memory
from vaeline.io.npy import Pixels, blocks, taken

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
GROUPS = {  # versions 2 and 1: folder, limit, and what of memory.stat cannot be given back
    "": (CGROUP, "memory.max", "anon"),
    "memory": (CGROUP / "memory", "memory.limit_in_bytes", "total_rss"),
}


class Resident:
    """All images in the device's memory: a batch is one index_select."""

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        self.pixels = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
        for part in blocks(pixels):  # never a second copy
            self.pixels[part] = torch.from_numpy(np.array(pixels[part]))

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Batches uint8 [B, C, H, W] on the device, of the images with these indices, int64 [B] on the CPU."""
        if not indices:
            return
        everything = torch.cat(list(indices)).to(self.pixels.device)  # one copy to the device, not one a batch
        for batch in torch.split(everything, [len(batch) for batch in indices]):
            yield self.pixels.index_select(0, batch)


class Streamed:
    """Images left in their file: a thread reads the next batch while one is used."""

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        self.pixels, self.device = pixels, device

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """As those of `Resident`."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[Tensor] | None = None
            for batch in indices:
                current, ahead = ahead, reader.submit(self._read, batch)
                if current is not None:
                    yield current.result().to(self.device, non_blocking=True)
            if ahead is not None:
                yield ahead.result().to(self.device, non_blocking=True)

    def _read(self, indices: Tensor) -> Tensor:
        batch = torch.from_numpy(taken(self.pixels, indices.numpy()))
        return batch.pin_memory() if self.device.type == "cuda" else batch


def _free_bytes(device: torch.device) -> int:
    """What may still be allocated: by the machine, this process's limits (`ulimit`) and its control group's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not (PROC / "meminfo").exists():  # macOS
        return memory() // 2
    process = _numbers(PROC / "self/status")
    free = [_numbers(PROC / "meminfo")["MemAvailable"] << 10]
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            free.append(most - (process[used] << 10))
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        if kind in GROUPS:
            folder, most_file, used = GROUPS[kind]
            with suppress(OSError, ValueError):  # seen from a container, its own group is the root; "max": no limit
                group = folder / path[1:] if (folder / path[1:] / most_file).exists() else folder
                free.append(int((group / most_file).read_text()) - _numbers(group / "memory.stat")[used])
    return max(0, min(free))


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the line's first word."""
    words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def parts(images: Tensor, places: Tensor, shape: Shape) -> Tensor:
    """One part of each image, at a place on [0, 1)^2: [B, C, H, W] and [B, 2] -> [B, *shape]."""
    number, *indices = (torch.arange(length, device=places.device) for length in (len(images), *shape[1:]))
    free = [side - own + 1 for side, own in zip(images.shape[2:], shape[1:], strict=True)]
    rows, columns = ((places[:, i, None] * free[i]).long() + indices[i] for i in range(2))  # [B, H], [B, W]
    return images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


ImageSource = Resident | Streamed


def open_images(pixels: Pixels, device: torch.device) -> ImageSource:
    """Bring a split to the device if it fits into half of what is free there, else leave it in its file."""
    if pixels.nbytes <= _free_bytes(device) // 2:
        return Resident(pixels, device)
    return Streamed(pixels, device)
