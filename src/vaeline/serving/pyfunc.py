"""Code of a registered model: MLflow runs this file to load it (models from code; nothing is pickled).

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    model.predict(pixels, params={"method": "reconstruct"})

Methods reconstruct, encode and score take pixels, decode takes latents, sample takes any array, e.g. zeros(1), and
`n`; see `vaeline.serving.inference`. Pixels may have any numeric dtype; a JSON request to `mlflow models serve` sends
nested lists. MLflow checks no package before it runs this file: `vaeline.load` does, and runs none of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import LoadedModel, load_model


class Served(PythonModel):
    """A VAE behind MLflow's `predict`. Raises ValueError, in one line, for an input that it cannot read."""

    def __init__(self, loaded: LoadedModel | None = None) -> None:
        if loaded is not None:
            self.loaded = loaded

    def load_context(self, context: PythonModelContext) -> None:
        """Read model.safetensors and config.json."""
        self.loaded = load_model(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Answer of the method `params["method"]`. Raises MlflowException, whose message alone a server passes on."""
        try:
            return self.answer(model_input, params or {})
        except ValueError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None

    def answer(self, model_input: Any, params: dict[str, Any]) -> np.ndarray:
        """`predict` without MLflow's context."""
        chosen = {"method": "reconstruct", "n": 16, "seed": 0, **params}
        model = TrainedModel(self.loaded)
        methods: dict[str, Callable[[], np.ndarray]] = {
            "reconstruct": lambda: model.reconstruct(model_input),
            "encode": lambda: model.encode(model_input),
            "score": lambda: model.score(model_input, int(chosen["seed"])),
            "decode": lambda: model.decode(model_input),
            "sample": lambda: model.sample(int(chosen["n"]), int(chosen["seed"])),
        }
        if chosen["method"] not in methods:
            raise ValueError(f"method: found {chosen['method']!r}, allowed: {', '.join(methods)}")
        return methods[chosen["method"]]()


set_model(Served())
