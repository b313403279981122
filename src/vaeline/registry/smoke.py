"""Program that loads a registered model by MLflow and predicts once:

    python -P smoke.py models:/NAME/VERSION SECONDS

The model must bring its own code: nothing of vaeline is imported here. Exit code 0, or a traceback whose last line is
the error; the kernel ends the process after SECONDS, whatever its parent does.
"""

import signal
import sys

import mlflow.pyfunc
import numpy as np


def predict(uri: str) -> None:
    """Load, reconstruct and sample; raises ValueError where an answer is not of finite pixels."""
    model = mlflow.pyfunc.load_model(uri)
    shape = tuple(model.metadata.metadata["methods"]["reconstruct"]["input"]["shape"][1:])
    black = np.zeros((2, *shape), np.uint8)
    for method, given in (("reconstruct", black), ("sample", black[:1])):
        answer = np.asarray(model.predict(given, params={"method": method, "n": 2}))
        if answer.shape != black.shape or not np.isfinite(answer).all():
            raise ValueError(f"{method} answers {answer.dtype} {answer.shape}, not finite pixels {black.shape}")


if __name__ == "__main__":
    signal.alarm(int(sys.argv[2]))
    predict(sys.argv[1])
