"""Smoke test of a package that was just written here: MLflow loads it in a fresh process, as its consumers will.

    python -P smoke.py PACKAGE EXAMPLE.npz

The process imports the package's own code: nothing of vaeline is imported at the top, and no PYTHONPATH is inherited.
MLflow's loader executes what a package holds: no other package is ever given to it.
"""

import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vaeline.serving.inference import TrainedModel

SECONDS = 300  # starting takes some ten on a slow machine
# pixels on [0, 1], in float32 and in float64: another number of threads moved those of a large network by 1.8e-4 in
# float32, which hides a damaged weight, and by less than 1e-12 in float64
TOLERANCES = (1e-3, 1e-6)


def reconstructions(model: "TrainedModel", pixels: np.ndarray) -> list[np.ndarray]:
    """Of uint8 images [N, C, H, W], in float32, as consumers get them, and in float64."""
    return [model.reconstruct(pixels), _exact(model, pixels)]


def _exact(model: "TrainedModel", pixels: np.ndarray) -> np.ndarray:
    import torch

    from vaeline.core.model import decoded

    vae = deepcopy(model.loaded.vae).double()
    with torch.no_grad():
        x = vae.likelihood.observe(torch.from_numpy(pixels).double(), None)
        exact: np.ndarray = decoded(vae, vae.encode(x).mean).numpy()
    return exact


def predict(package: Path, example: np.ndarray, expected: list[np.ndarray]) -> None:
    """Load and reconstruct. Raises ValueError where other pixels come out than expected."""
    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(package))
    exact = _exact(served.unwrap_python_model().model, example)
    answer = np.asarray(served.predict(example, params={"method": "reconstruct"}))
    for found, wanted, most in zip((answer, exact), expected, TOLERANCES, strict=True):
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=most, equal_nan=True):
            raise ValueError("reconstructs other images than the model that was trained")


def smoke_test(package: Path, example: np.ndarray, expected: list[np.ndarray], seconds: float = SECONDS) -> None:
    """`predict` in a process of its own. Raises UserError with its last line where it fails."""
    from vaeline.errors import UserError

    with tempfile.TemporaryDirectory() as elsewhere:
        np.savez(Path(elsewhere) / "example.npz", example, *expected)
        command = [sys.executable, "-P", __file__, str(package.absolute()), "example.npz"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        try:
            subprocess.run(command, cwd=elsewhere, env=environment, timeout=seconds, check=True, **pipes)
            return
        except subprocess.TimeoutExpired:
            error = f"no answer within {seconds} s"
        except subprocess.CalledProcessError as failed:
            lines = failed.stderr.decode(errors="replace").strip().splitlines()
            error = lines[-1] if lines else f"exit code {failed.returncode}"
    raise UserError(f"the package does not load and predict in a fresh process: {error}")


if __name__ == "__main__":
    with np.load(sys.argv[2]) as arrays:
        example, *expected = arrays.values()
    predict(Path(sys.argv[1]), example, expected)
