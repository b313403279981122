"""Imported by the process that forks for each trial: what every trial would import, or do again, for seconds."""

import warnings
from importlib import import_module

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    for module in (
        *(f"pipeline.stages.{stage}" for stage in ("fetch", "prepare", "train", "evaluate", "sample", "theory")),
        *("pipeline.stages.register", "pipeline.stages.report"),
        *("matplotlib.pyplot", "sklearn.linear_model", "sklearn.neighbors", "mlflow.pyfunc"),
        *(f"mlflow.store.{store}.sqlalchemy_store" for store in ("model_registry", "tracking")),
        "torch._dynamo",  # by the training's first step
        "torch._decomp.decompositions_for_jvp",  # by the mode of p(z|x)
    ):
        import_module(module)
warn_dependency_requirement_mismatches(["torch"])  # reads which files belong to which package, and keeps it
