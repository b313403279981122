"""A model as an MLflow model folder: safetensors, JSON and the code of pyfunc.py. Nothing in it is pickled."""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.models.model import Model
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import vaeline
from vaeline.evaluation.drift import REFERENCE, reference_bytes
from vaeline.serving import pyfunc
from vaeline.serving.model_files import CONFIG, WEIGHTS
from vaeline.serving.package import MANIFEST, MODEL, renumber, seal

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from vaeline.serving.model_files import LoadedModel

REQUIRED = ("torch", "numpy", "pydantic", "ruamel.yaml", "safetensors")
PARAMS = {"method": "reconstruct", "n": 16, "seed": 0}


def write_package(
    folder: Path,
    model: Path,
    loaded: "LoadedModel",
    example: np.ndarray,
    mlflow_model: Model,
    name: str,
    serial: int,
    reference: np.ndarray | None = None,
) -> str:
    """Write the MLflow model folder of the saved model at `model`, and last its manifest; returns that one's SHA-256.

    `example` is a few images, uint8 [N, C, H, W]; `name` and `serial` are those of the version that it is to become;
    `reference` is the ELBOs of test images, which tell drift.
    """
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / Path(MODEL).name  # whose name MLflow keeps
        staged.mkdir()
        for file in (WEIGHTS, CONFIG):
            shutil.copyfile(model / file, staged / file)
        if reference is not None:
            (staged / REFERENCE).write_bytes(reference_bytes(reference))
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=mlflow_model,
            python_model=pyfunc.__file__,
            artifacts={"model": str(staged)},
            code_paths=[str(Path(vaeline.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature(loaded),
            input_example=(example, PARAMS),
            metadata=describe(loaded),
        )
    _keep_bytecode_out(folder)
    return seal(folder, name, serial, loaded)


def _keep_bytecode_out(folder: Path) -> None:
    """Put an empty file where Python would make the folder `__pycache__`.

    MLflow imports a package's code where it lies, and Python would leave bytecode there, which no manifest can vouch
    for and which it would later run in the code's place.
    """
    for code in {path.parent for path in folder.rglob("*.py")}:
        (code / "__pycache__").write_bytes(b"")


def renumber_package(client: "MlflowClient", model_id: str, digest: str, serial: int) -> str:
    """Give the uploaded package whose manifest has SHA-256 `digest` another number; returns the new manifest's.

    For where another machine took the number in between.
    """
    with tempfile.TemporaryDirectory() as temporary:
        old, new = Path(temporary) / "old", Path(temporary) / "new"
        location = client.get_logged_model(model_id).artifact_location
        mlflow.artifacts.download_artifacts(f"{location}/{MANIFEST}", dst_path=str(old))
        made = renumber(old, new, digest, serial)
        client.log_model_artifacts(model_id, str(new))
    return made


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
