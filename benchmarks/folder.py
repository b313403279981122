"""`python -m benchmarks.folder [IMAGES]`: what `prepare` takes of a folder of JPEGs: both speeds by turns, and memory.

Pictures of 178 x 218 pixels, resized to 64 x 64. Seconds on one core over seconds on all; what as many runs at once, a
core each, that share nothing gain (a virtual core may be half of one); and the peak's slope between a quarter of the
images and all of them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.row import Row
from benchmarks.stages import ROOT, run_command
from vaeline.config.data import Data, Folder
from vaeline.data.prepare import prepare

WIDTH, HEIGHT, SIDE = 178, 218, 64
LEAST, MOST, LIMIT = 1.8, 4096, 1 << 30  # times; bytes an image (64 x 64 x 3 pixels are 12,288); bytes
REPEATS, CELEBA = 3, 200_000


def rows(images: int = 20_000) -> Iterator[Row]:
    """The gain of further cores, and what 200,000 images would take."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vaeline-bench-") as name:
        folder = Path(name)
        write_pictures(folder / "all", images)
        (folder / "some").mkdir()
        for path in sorted((folder / "all").iterdir())[: images // 4]:
            os.link(path, folder / "some" / path.name)
        _, some = measured(folder / "some", cores)
        found = [
            (measured(folder / "all", cores[:1]), measured(folder / "all", cores), at_once(folder / "all", cores))
            for _ in range(REPEATS)
        ]
    one, every = (min(turn[i][0] for turn in found) for i in (0, 1))
    apart = min(turn[2] for turn in found)
    peak = max(turn[1][1] for turn in found)
    slope = (peak - some) / (images - images // 4)
    whole = peak + slope * (CELEBA - images)
    name = f"prepare, {images:,} JPEGs: 1 core over {len(cores)}"
    yield Row(name, f"{one:.1f} / {every:.1f} s", one / every, f">= {LEAST}", one / every >= LEAST)
    most = len(cores) * one / apart
    yield Row(f"{len(cores)} such runs at once, a core each", f"{apart:.1f} s", most, "for comparison", True)
    yield Row("its memory, a further image", f"{slope:.0f} B", None, f"<= {MOST} B", slope <= MOST)
    yield Row(f"its peak at {CELEBA:,}, by that", f"{whole / 2**20:.0f} MiB", None, "<= 1 GiB", whole <= LIMIT)


def write_pictures(folder: Path, count: int) -> None:
    """Smooth colour pictures with some noise, of about the size of a photograph's JPEG."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), 3)
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg", quality=85)


def measured(folder: Path, cores: list[int]) -> tuple[float, int]:
    """Seconds and peak bytes of a process that prepares the folder on these cores."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as prepared:
        begun = time.perf_counter()
        command = (sys.executable, "-m", "benchmarks.folder", str(folder), f"{prepared}/prepared")
        used = run_command("taskset", "-c", ",".join(map(str, cores)), *command, cwd=ROOT)
        return time.perf_counter() - begun, used.ru_maxrss << 10


def at_once(folder: Path, cores: list[int]) -> float:
    """Seconds that a run on each core takes while the others run."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(cores)) as threads:
        list(threads.map(lambda core: measured(folder, [core]), cores))
    return time.perf_counter() - begun


if __name__ == "__main__":
    if len(sys.argv) == 3:
        source = Folder(kind="folder", path=sys.argv[1], size=SIDE, mode="RGB")
        data = Data(source=source, test=0.1, validation=0.1, binarise="none", seed=1)
        prepare(data, Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        for row in rows(*map(int, sys.argv[1:])):
            print(row)
