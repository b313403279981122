"""MLflow model folder of a model: safetensors, JSON and the code of pyfunc.py. Nothing in it is pickled."""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.models.model import Model
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import vaeline
from vaeline.config import AutoencoderKl
from vaeline.evaluation.drift import REFERENCE, reference_bytes
from vaeline.serving import pyfunc
from vaeline.serving.model_files import CONFIG, WEIGHTS, LoadedModel
from vaeline.serving.package import MODEL, NAME

REQUIRED = ("torch", "numpy", "pydantic", "ruamel.yaml", "safetensors")  # by the model's code
TYPES = {str: DataType.string, int: DataType.long}


def required(loaded: LoadedModel) -> list[str]:
    """The installed versions of the libraries that the model's code imports."""
    more = ("diffusers",) if isinstance(loaded.config.model.network, AutoencoderKl) else ()
    return [f"{name}=={version(name).partition('+')[0]}" for name in (*REQUIRED, *more)]  # without +cpu


def write_package(
    folder: Path,
    model: Path,
    loaded: LoadedModel,
    example: np.ndarray,
    mlflow_model: Model,
    reference: np.ndarray | None = None,
) -> None:
    """Write the MLflow model folder of the saved model at `model`; `vaeline.serving.package.seal` finishes it.

    `example` is a few images, uint8 [N, C, H, W]; `reference` is the ELBOs of test images, for drift tests.
    """
    pixels = {"dtype": "uint8", "shape": [-1, *loaded.vae.shape]}
    latents = {"dtype": "float32", "shape": [-1, loaded.vae.latent_dim]}
    inputs = {"reconstruct": pixels, "encode": pixels, "score": pixels, "decode": latents, "sample": None}
    # a tensor has one shape and dtype in a signature, but here the method decides between pixels and latents: the
    # input is left open, the model checks it itself, and the metadata hold what each method takes
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(object), (-1,))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *loaded.vae.shape))]),
        params=ParamSchema([ParamSpec(name, TYPES[type(value)], value) for name, value in pyfunc.PARAMS.items()]),
    )
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / Path(MODEL).name  # whose name MLflow keeps
        staged.mkdir()
        for file in (WEIGHTS, CONFIG):
            shutil.copyfile(model / file, staged / file)
        library, code = Path(vaeline.__file__).parent, Path(temporary) / "vaeline"
        for path in library.rglob("*"):  # but not an editor's copies, nor folders that another branch left empty
            copy = code / (part := path.relative_to(library))
            if path.suffix in (".py", ".typed") and all(map(NAME.fullmatch, part.parts)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        if reference is not None:
            (staged / REFERENCE).write_bytes(reference_bytes(reference))
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=mlflow_model,
            python_model=pyfunc.__file__,
            artifacts={"model": str(staged)},
            code_paths=[str(code)],
            pip_requirements=required(loaded),
            signature=signature,
            input_example=(example, pyfunc.PARAMS),
            metadata={
                "model_digest": loaded.digest,
                "data_digest": loaded.config.data.digest,
                "methods": {method: {"input": given} for method, given in inputs.items()},
            },
        )
    # MLflow imports the code where it lies, and Python would leave bytecode in __pycache__, which no manifest can
    # list and which would later run in the code's place: an empty file of that name prevents it
    for path in folder.rglob("*.py"):
        (path.parent / "__pycache__").touch()
