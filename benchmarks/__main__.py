"""`python -m benchmarks`: every measure beside its bar. Exit code 1 where one is missed."""

import importlib
import sys
from collections.abc import Iterable

from benchmarks.row import Row

# first those that measure processes: Linux counts the memory of the one that starts a process as that one's own
PARTS = ("stages", "folder", "pipeline", "training", "elbo_time", "estimators", "tracking")


def main() -> int:
    """Measure part by part, print each row as it comes."""
    print(f"{'measure':<52} {'measured':>20} {'ratio':>8}  {'bar':<16}")
    missed = 0
    for part in PARTS:
        rows: Iterable[Row] = importlib.import_module(f"benchmarks.{part}").rows()
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            print(
                f"{row.name:<52} {row.measured:>20} {ratio:>8}  {row.bar:<16} {'ok' if row.ok else 'MISSED'}",
                flush=True,
            )
            missed += not row.ok
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
