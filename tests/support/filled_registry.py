"""What tests of the registry share: where they are, and a registry whose versions can be judged and spoilt."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vaeline.tracking.provenance import RunStart

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "vaeline-fashion-mnist"
ROOT = Path(__file__).parents[2]
START = RunStart("experiment", "run", {"train.beta": "1.0"}, {"vaeline.data_digest": "d" * 64})


def enter(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let `root` own the tracking store. MLflow writes the address into the environment; that is undone too."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def smoke_here(version: Any) -> str | None:
    """What `smoke.py` does, without its process."""
    from vaeline.registry import smoke

    try:
        smoke.predict(f"models:/{version.name}/{version.version}")
    except Exception as error:
        return str(error)
    return None


class Shelf:
    """What tests do with the stocked registry."""

    def __init__(self, client: "MlflowClient") -> None:
        from pipeline.stages.register import read_trial
        from vaeline.config import read_params
        from vaeline.data.prepared import load_split

        self.client = client
        test = load_split(Path("data/prepared"), "test")
        trial = read_trial(read_params(Path("params.yaml")), test)
        bar = replace(trial.bar, minimum_active_units=0)  # nothing is trained here
        self.trial = replace(trial, bar=bar, smoke_test=lambda version: None)

    def contest(self, number: int, client: Any = None, trial: Any = None) -> Any:
        """Judge a version as the stage does, through another client where one is given."""
        from vaeline.registry.champion import contest
        from vaeline.registry.stored import load_version

        version, judge = self.client.get_model_version(NAME, str(number)), trial or self.trial
        return contest(client or self.client, version, judge.contender(load_version(self.client, version)), judge)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def history(self) -> list[tuple[str, str, str | None]]:
        from vaeline.registry.history import read

        told = read(self.client.get_registered_model(NAME).tags)
        return [(entry.action, entry.version, entry.before) for entry in told]

    def tags(self, number: int) -> dict[str, str]:
        return dict(self.client.get_model_version(NAME, str(number)).tags)

    def weights(self, number: int) -> Path:
        """The stored file of a version. It is shared: put back what you change."""
        import mlflow

        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{number}"))
        return next(folder.rglob("model.safetensors"))
