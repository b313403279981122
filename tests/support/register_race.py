"""Clones that register at once at the store of MLFLOW_TRACKING_URI: python register_race.py CLONE...

A clone is what the stages before `register` leave behind, all in one folder. Forks a process a clone before anything
opens the store; all start together. Exit code: how many failed.
"""

import os
import sys
from multiprocessing import get_context
from typing import Any

from pipeline.stages import register as stage
from vaeline.registry import registration, smoke
from vaeline.serving import mlflow_package

PATIENCE_S = 500  # on a machine that is busy with other things
assert mlflow_package  # imported before the fork, as MLflow's stores are


def register(clone: str, barrier: Any) -> None:
    """Register the clone's model once all processes are ready."""
    os.chdir(clone)
    os.environ["DVC_ROOT"] = clone
    barrier.wait(PATIENCE_S)
    stage.main()


def main(clones: list[str]) -> int:
    """Number of processes that failed."""
    registration.smoke_test = smoke.predict  # in a process each, it would take seconds
    context = get_context("fork")
    barrier = context.Barrier(len(clones))
    children = [context.Process(target=register, args=(clone, barrier)) for clone in clones]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return sum(child.exitcode != 0 for child in children)


if __name__ == "__main__":
    os.environ |= {"VAELINE_DEVICE": "cpu", "VAELINE_UPLOADER": "off"}
    sys.exit(main(sys.argv[1:]))
