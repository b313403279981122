"""`vaeline run` beside one process that does the same work by hand: wall time on params.yaml, by turns, both cold.

The plain process calls what the stages call, one after another: no DVC, no Prefect, no MLflow, no registry.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from benchmarks.row import Row
from benchmarks.stages import repository, run_command

MOST = 1.3
STAGES = ("fetch", "prepare", "train", "evaluate", "sample", "theory", "report")


class Nobody:
    """A tracked run without a store: whatever it is told, nothing happens."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def by_hand() -> None:
    """Each stage's work in this process, in the current folder."""
    for name in STAGES:
        stage = import_module(f"pipeline.stages.{name}")
        for opening in ("open_training_run", "open_model_run"):
            setattr(stage, opening, lambda *_, **__: nullcontext(Nobody()))
        stage.main()


def rows() -> Iterator[Row]:
    """Seconds of both, from nothing to the report (and, for `vaeline run`, to the champion)."""
    seconds = []
    for command in ((sys.executable, "-m", "benchmarks.pipeline"), ("vaeline", "run")):
        with repository() as folder:
            begun = time.perf_counter()
            run_command(*command, cwd=folder)
            seconds.append(time.perf_counter() - begun)
    plain, ours = seconds
    yield Row(
        "vaeline run over one plain process",
        f"{ours:.0f} / {plain:.0f} s",
        ours / plain,
        f"<= {MOST}",
        ours / plain <= MOST,
    )


if __name__ == "__main__":
    by_hand()
