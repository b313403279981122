"""Smoke test of a package that was just written here: MLflow loads it in a fresh process, as its consumers will.

    python -P smoke.py PACKAGE EXAMPLE.npz

The process imports the package's own code: nothing of vaeline is imported at the top, and no PYTHONPATH is inherited.
MLflow's loader executes what a package holds: no other package is ever given to it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 300  # starting takes some ten on a slow machine
TOLERANCE = 1e-3  # pixels on [0, 1]: with another number of threads a large network rounds otherwise, by some 1e-5


def predict(package: Path, example: np.ndarray, expected: np.ndarray) -> None:
    """Load and reconstruct. Raises ValueError where other pixels come out than expected."""
    import mlflow.pyfunc

    answer = np.asarray(mlflow.pyfunc.load_model(str(package)).predict(example, params={"method": "reconstruct"}))
    if answer.shape != expected.shape or not np.allclose(answer, expected, atol=TOLERANCE, equal_nan=True):
        raise ValueError("reconstructs other images than the model that was trained")


def smoke_test(package: Path, example: np.ndarray, expected: np.ndarray, seconds: float = SECONDS) -> None:
    """`predict` in a process of its own. Raises UserError with its last line where it fails."""
    from vaeline.errors import UserError

    with tempfile.TemporaryDirectory() as elsewhere:
        np.savez(Path(elsewhere) / "example.npz", example=example, expected=expected)
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
        predict(Path(sys.argv[1]), arrays["example"], arrays["expected"])
