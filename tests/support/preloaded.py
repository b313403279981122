"""Imported by the process that forks for each trial: what every trial would do again, each for a second."""

import gc
import warnings
from importlib import import_module

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import_module("torch._decomp.decompositions_for_jvp")  # of the mode of p(z|x)
warn_dependency_requirement_mismatches(["torch"])  # reads which files belong to which package, and keeps it
gc.collect()
gc.freeze()  # no collection in a fork goes through, and so copies, what lies in memory
