"""`python -m benchmarks.scale [IMAGES ...]`: what each stage costs against the number of images, shapes 32 x 32.

One process a stage, one thread, a small MLP for one epoch. The private memory of a process (RLIMIT_DATA) ends at LIMIT:
10^6 images, 3.1 GB, are twice as large, and every stage looks at them in parts. The peak is the resident set's, which
also counts pages of the data's files that the system takes back when it needs them.
"""

import sys
from pathlib import Path

from benchmarks.stages import run_command, tiny_repository

STAGES = ("fetch", "prepare", "train", "evaluate", "sample", "theory")
LIMIT, SIDE = 1536 << 20, 32  # bytes, pixels
DEFAULT = (10_000, 100_000)


def main(counts: list[int]) -> None:
    """A table in Markdown, a row as soon as it is measured: CPU-seconds and the peak in MiB."""
    print(f"| images | MB | {' | '.join(STAGES)} |\n|{'---|' * (len(STAGES) + 2)}")
    for count in counts:
        source = f"kind: shapes\n    count: {count}\n    size: {SIDE}"
        with tiny_repository(source, "validation: 0.1") as folder:
            cells = [measure(stage, folder) for stage in STAGES]
        print(f"| {count:,} | {count * 3 * SIDE**2 / 1e6:,.0f} | {' | '.join(cells)} |", flush=True)


def measure(stage: str, folder: Path, limit: int = LIMIT) -> str:
    """CPU-seconds and peak of a stage. Raises RuntimeError where it fails."""
    command = ("prlimit", f"--data={limit}", sys.executable, "pipeline/stages/runner.py", stage)
    used = run_command(*command, cwd=folder, OMP_NUM_THREADS="1", DVC_ROOT=str(folder), DVC_STAGE=stage)
    return f"{used.ru_utime + used.ru_stime:.1f} s, {used.ru_maxrss >> 10} MiB"


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(DEFAULT))
