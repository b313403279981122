"""Batches of uint8 images on a device: from memory where the data set fits, else read ahead from its file."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]  # [N, C, H, W], most often a memory map
CHUNK = 16 << 20  # bytes copied at once


class Resident:
    """All images in the device's memory: a batch is one index_select."""

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        self.pixels = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
        rows = max(1, CHUNK // max(1, pixels[0].nbytes))
        for start in range(0, len(pixels), rows):  # in parts: never a second copy
            self.pixels[start : start + rows] = torch.from_numpy(np.array(pixels[start : start + rows]))

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
        batch = torch.from_numpy(self.pixels[indices.numpy()])
        return batch.pin_memory() if self.device.type == "cuda" else batch


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


ImageSource = Resident | Streamed


def open_images(pixels: Pixels, device: torch.device) -> ImageSource:
    """Bring a split to the device if it fits into half of what is free there, else leave it in its file."""
    if pixels.nbytes <= _free_bytes(device) // 2:
        return Resident(pixels, device)
    return Streamed(pixels, device)
