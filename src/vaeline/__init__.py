"""Variational autoencoders a team can trust.

import vaeline

model = vaeline.load("models:/NAME@champion")  # or a folder; device="cuda"
model.encode(pixels), model.decode(latents), model.reconstruct(pixels), model.score(pixels), model.sample(16)
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vaeline.serving.inference import TrainedModel

__version__ = "0.1.0"


def load(uri: "str | os.PathLike[str]", device: "str | torch.device" = "cpu") -> "TrainedModel":
    """Load a model of the registry, of a run or of a folder, checked first.

    `uri`: models:/NAME@alias, models:/NAME/3, models:/m-ID, runs:/RUN/PATH, file:///FOLDER or a folder. Each file is
    held against the package's manifest before it is parsed, nothing is unpickled, no code of the package runs.
    With VAELINE_TRUSTED_KEYS set, only what one of those keys signed is loaded. Raises vaeline.errors.UserError, in
    one line, for what is missing, damaged or not to be trusted.
    """
    from vaeline.registry import load

    return load.load(uri, device)
