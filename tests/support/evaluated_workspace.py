"""A workspace up to a model with random weights on small shapes, and what its stages reported."""

from pathlib import Path
from typing import Any

import yaml

from vaeline.config import parse_params
from vaeline.data.fetch import fetch
from vaeline.data.prepare import prepare
from vaeline.data.prepared import load_split, manifest_digest
from vaeline.io.workspace import Workspace
from vaeline.serving.model_files import save_model
from vaeline.training.build import build_model

RAW, PREPARED, MODEL = Workspace().raw, Workspace().prepared, Workspace().model
PARAMS: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text()) | {
    "data": {
        "source": {"kind": "shapes", "count": 150, "size": 12},
        "binarise": "none",
        "validation": 30,
        "test": 40,
        "seed": 1,
    },
    "model": {
        "latent_dim": 6,
        "network": {"kind": "mlp", "hidden": [32]},
        "likelihood": {"kind": "gaussian", "sigma": 0.2},
    },
    "evaluate": {"importance_samples": 5, "active_units_threshold": 0.01, "seed": 1},
    "sample": {"columns": 5, "rows": 4, "steps": 7, "traversals": 3, "seed": 1},
    "register": {"name": "shapes", "minimum_active_units": 0},
}
del PARAMS["theory"]


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """PARAMS with changes, by section."""
    return {name: section | sections.get(name, {}) for name, section in PARAMS.items()}


def set_up(content: dict[str, Any]) -> None:
    """Params, prepared data and a model with random weights, in the current folder."""
    Path("params.yaml").write_text(yaml.safe_dump(content))
    params = parse_params(content)
    if not PREPARED.exists():
        fetch(params.data.source, Workspace())
        prepare(params.data, RAW, PREPARED)
    shape = load_split(PREPARED, "test").shape[1:]
    data = {"digest": manifest_digest(PREPARED), "source": params.data.source.kind, "binarise": params.data.binarise}
    description = {"model": params.model.model_dump(), "objective": params.train.objective, "data": data}
    vae = build_model(params.model, (shape[0], shape[1], shape[2]), params.train.objective, seed=3)
    save_model(MODEL, vae, description)
