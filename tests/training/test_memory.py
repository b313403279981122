"""Data larger than the memory that a process may have."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

IMAGES, SPARE = 150_000, 288 << 20  # 461 MB of images; bytes beyond what imports take
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import torch.utils.flop_counter
from small_training import CPU, model, options, train_small
from pipeline.stages.sample import latent_axes
from vaeline.data.batches import _numbers
from vaeline.evaluation.split_metrics import bound
from vaeline.training.splits import Splits
pixels = np.load(sys.argv[1], mmap_mode="r")
most = (_numbers(Path("/proc/self/status"))["VmData"] << 10) + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
result = train_small(Path(sys.argv[1]).parent / "c", options(epochs=1, batch_size=500), Splits(pixels, pixels, "none"))
assert np.isfinite(bound(result.model, pixels, 1).elbo).all()
with torch.no_grad():
    assert np.isfinite(latent_axes(result.model, pixels).spread).all()
try:
    np.ones(pixels.nbytes, np.uint8)
except MemoryError:
    print("too large for memory")
"""


@pytest.mark.slow
def test_training_and_its_evaluation_go_through_data_larger_than_memory(tmp_path: Path):
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (IMAGES, 3, 32, 32)).flush()  # sparse: black
    paths = os.pathsep.join(sys.path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "images.npy"), str(SPARE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "too large for memory\n"), done.stderr
