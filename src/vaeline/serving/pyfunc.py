"""Code of a registered model: MLflow runs this file to load it (models from code; nothing is pickled).

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    model.predict(pixels, params={"method": "reconstruct"})

Methods reconstruct, encode and score take pixels, decode takes latents, sample takes any array, e.g. zeros(1), and
`n`; see `vaeline.serving.inference`. Pixels may have any numeric dtype; a JSON request to `mlflow models serve` sends
nested lists. MLflow checks no package before it runs this file: `vaeline.load` does, and runs none of it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import load_model

PARAMS: dict[str, Any] = {"method": "reconstruct", "n": 16, "seed": 0}
OPTIONS = {"reconstruct": (), "encode": (), "score": ("seed",), "decode": (), "sample": ("n", "seed")}  # by method


class Served(PythonModel):
    """A VAE behind MLflow's `predict`."""

    model: TrainedModel

    def load_context(self, context: PythonModelContext) -> None:
        """Read model.safetensors and config.json."""
        self.model = TrainedModel(load_model(Path(context.artifacts["model"])))

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Answer of the method `params["method"]`. Raises MlflowException, whose message alone a server passes on."""
        chosen = PARAMS | (params or {})
        method, given = chosen["method"], () if chosen["method"] == "sample" else (model_input,)
        try:
            if method not in OPTIONS:
                raise ValueError(f"method: found {method!r}, allowed: {', '.join(OPTIONS)}")
            options = {name: int(chosen[name]) for name in OPTIONS[method]}
            answer: np.ndarray = getattr(self.model, method)(*given, **options)
            return answer
        except ValueError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None


set_model(Served())
