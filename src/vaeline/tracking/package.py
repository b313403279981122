"""A model as an MLflow model folder: safetensors, JSON and the code of pyfunc.py. Nothing in it is pickled."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.models.model import Model
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import vaeline
from vaeline.errors import UserError
from vaeline.tracking import pyfunc

if TYPE_CHECKING:
    from vaeline.models import LoadedModel

REQUIRED = ("torch", "numpy", "pydantic", "pyyaml", "safetensors")
PARAMS = {"method": "reconstruct", "n": 16, "seed": 0}


def write_package(folder: Path, model: Path, loaded: "LoadedModel", example: np.ndarray, mlflow_model: Model) -> None:
    """Write the MLflow model folder of the saved model at `model`; `example` is a few images, uint8 [N, C, H, W]."""
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=mlflow_model,
        python_model=pyfunc.__file__,
        artifacts={"model": str(model.absolute())},
        code_paths=[str(Path(vaeline.__file__).parent)],
        pip_requirements=requirements(),
        signature=signature(loaded),
        input_example=(example, PARAMS),
        metadata=describe(loaded),
    )


def requirements() -> list[str]:
    """What the model's code imports, pinned to what is installed; `2.14.1+cpu` is told as 2.14.1."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in REQUIRED}
    return [f"{name}=={version}" for name, version in versions.items()]


def signature(loaded: "LoadedModel") -> ModelSignature:
    """The call as MLflow knows it.

    A tensor has one shape and dtype in a signature, but here the method decides between pixels and latents: the
    input is left open, the model checks it itself, and the metadata (see `describe`) tell what each method wants.
    """
    types = {"method": DataType.string, "n": DataType.long, "seed": DataType.long}
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(object), (-1,))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *loaded.vae.shape))]),
        params=ParamSchema([ParamSpec(name, types[name], default) for name, default in PARAMS.items()]),
    )


def describe(loaded: "LoadedModel") -> dict[str, Any]:
    """What a consumer reads in the model's metadata."""
    pixels = {"dtype": "uint8", "shape": [-1, *loaded.vae.shape]}
    latents = {"dtype": "float32", "shape": [-1, loaded.vae.latent_dim]}
    return {
        "model_digest": loaded.digest,
        "data_digest": loaded.config.data.digest,
        "methods": {
            "reconstruct": {"input": pixels},
            "encode": {"input": pixels},
            "score": {"input": pixels},
            "decode": {"input": latents},
            "sample": {"input": None},
        },
    }


def verify_package(uri: str, loaded: "LoadedModel", example: np.ndarray) -> None:
    """Load an uploaded model back: the same files must have come, and the same numbers come out.

    Raises UserError where they do not.
    """
    served = mlflow.pyfunc.load_model(uri)
    digest = served.unwrap_python_model().loaded.digest
    if digest != loaded.digest:
        raise UserError(f"{uri}: the model that came back has digest {digest}, {loaded.digest} was sent")
    own = pyfunc.Served(loaded)
    if not np.array_equal(served.predict(example, params=PARAMS), own.answer(example, PARAMS)):
        raise UserError(f"{uri}: the model that came back reconstructs other images than the one that was sent")
