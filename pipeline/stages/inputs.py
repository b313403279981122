"""Input of the stages after training: the model, checked against the prepared data."""

import torch

from vaeline.data.prepared import manifest_digest, read_manifest
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.serving.model_files import CONFIG, LoadedModel, load_model


def load_trained(workspace: Workspace, device: torch.device) -> LoadedModel:
    """The trained model, on a device. Raises UserError where it is missing or damaged.

    So too where `data/prepared` is not what it was trained on: the test split may hold its training images.
    """
    loaded, manifest = load_model(workspace.model, device), read_manifest(workspace.prepared)
    of = f"{workspace.model / CONFIG}: was trained on"
    if loaded.config.shape != manifest.shape:
        found, now = (" x ".join(map(str, shape)) for shape in (loaded.config.shape, manifest.shape))
        raise UserError(f"{of} {found} images, data/prepared has {now}; run `dvc repro train`")
    if loaded.config.data.digest != (digest := manifest_digest(workspace.prepared)):
        raise UserError(
            f"{of} the data {loaded.config.data.digest[:12]}, data/prepared is {digest[:12]}; run `dvc repro train`"
        )
    return loaded
