"""Shared by tests of the registry: names, environment, and a registry with versions to decide on."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vaeline.io.workspace import current_workspace
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


def smoke_in_process(client: Any, version: Any) -> str | None:
    """The smoke test without its process: the checks of `smoke_test`, then `smoke.py`."""
    from vaeline.registry import smoke
    from vaeline.registry.stored import load_version

    try:
        load_version(client, version)
        smoke.predict(f"models:/{version.name}/{version.version}")
    except Exception as error:
        return str(error)
    return None


def patch_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stage and the commands run the smoke test in this process."""
    from pipeline.stages import register

    build = register.gate_evaluator
    monkeypatch.setattr(register, "gate_evaluator", lambda *given: replace(build(*given), smoke_test=smoke_in_process))
    monkeypatch.setattr("vaeline.registry.operations.smoke_test", smoke_in_process)


class FilledRegistry:
    """A registry with published versions, and what tests do with it."""

    def __init__(self, client: "MlflowClient") -> None:
        from pipeline.stages.register import gate_evaluator
        from vaeline.config import read_params
        from vaeline.data.prepared import load_split

        self.client, self.workspace = client, current_workspace()
        test = load_split(self.workspace.prepared, "test")
        evaluator = gate_evaluator(self.workspace, read_params(self.workspace.params), test)
        thresholds = replace(evaluator.thresholds, minimum_active_units=0)  # nothing is trained here
        self.evaluator = replace(evaluator, thresholds=thresholds, smoke_test=lambda client, version: None)

    def run_gate(self, number: int, client: Any = None, evaluator: Any = None) -> Any:
        """Decide on a version as the stage does, through another client where one is given."""
        from vaeline.registry.champion import run_gate
        from vaeline.registry.stored import load_version

        version, evaluator = self.client.get_model_version(NAME, str(number)), evaluator or self.evaluator
        candidate = evaluator.candidate(load_version(self.client, version))
        return run_gate(client or self.client, version, candidate, evaluator)

    def rollback(self, reason: str = "") -> tuple[str | None, str]:
        from vaeline.registry.operations import rollback

        return rollback(self.client, self.workspace, NAME, reason)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def history(self) -> list[tuple[str, str, str | None]]:
        from vaeline.registry.champion_history import read

        entries = read(self.client.get_registered_model(NAME).tags)
        return [(entry.action, entry.version, entry.before) for entry in entries]

    def tags(self, number: int) -> dict[str, str]:
        return dict(self.client.get_model_version(NAME, str(number)).tags)

    def weights(self, number: int) -> Path:
        """The stored file of a version. It is shared: restore what you change."""
        import mlflow

        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{number}"))
        return next(folder.rglob("model.safetensors"))
