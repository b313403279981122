"""What each of several trials at once runs on: one accelerator, or its share of the cores."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaeline.io.locks import acquire

Environment = dict[str, str]


def slots(jobs: int) -> list[Environment]:
    """The environment of each of `jobs` places: the accelerators in turn, else the cores divided.

    What the user's own environment says of threads stays.
    """
    if accelerators := _accelerators():
        return [{"CUDA_VISIBLE_DEVICES": accelerators[slot % len(accelerators)]} for slot in range(jobs)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return [{name: threads for name in ("VAELINE_THREADS", "OMP_NUM_THREADS") if name not in os.environ}] * jobs


@contextmanager
def one_slot() -> Iterator[Environment]:
    """An accelerator that no other such block on this machine has, if one is free; a shared one, or none, else.

    For processes that know nothing of each other. The kernel frees it however its holder ends.
    """
    locks = Path(tempfile.gettempdir()) / f"vaeline-devices-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for name in _accelerators():
        descriptor = acquire(locks / name.replace("/", "-"), wait=False)
        if descriptor is not None:
            try:
                yield {"CUDA_VISIBLE_DEVICES": name}
            finally:
                os.close(descriptor)
            return
    yield slots(1)[0]


def _accelerators() -> list[str]:
    """The CUDA devices that may be used, as CUDA_VISIBLE_DEVICES names them; torch would take seconds to ask."""
    if os.environ.get("VAELINE_DEVICE") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in map(str.strip, visible.split(",")) if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []
