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


def patch_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """No smoke test of new packages, whose process takes six seconds: tests/registry/test_registration.py has it."""
    monkeypatch.setattr("vaeline.registry.registration.smoke_test", lambda *given: None)


class FilledRegistry:
    """A registry with published versions, and what tests do with it."""

    def __init__(self, client: "MlflowClient") -> None:
        from pipeline.stages.register import gate_evaluator
        from vaeline.config import read_params
        from vaeline.data.prepared import load_split

        self.client, self.workspace = client, current_workspace()
        test = load_split(self.workspace.prepared, "test")
        evaluator = gate_evaluator(self.workspace, read_params(self.workspace.params), test)
        thresholds = evaluator.thresholds.model_copy(update={"minimum_active_units": 0})  # nothing is trained here
        self.evaluator = replace(evaluator, thresholds=thresholds)

    def run_gate(self, number: int, client: Any = None, evaluator: Any = None) -> Any:
        """Decide on a version as the stage does, through another client where one is given."""
        from vaeline.registry.champion import load_version, run_gate

        version, evaluator = self.client.get_model_version(NAME, str(number)), evaluator or self.evaluator
        candidate = evaluator.candidate(load_version(version).loaded)
        return run_gate(client or self.client, version, candidate, evaluator)

    def rollback(self, reason: str = "") -> tuple[str | None, str]:
        from vaeline.registry.champion import rollback

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
        return self.folder(number) / "artifacts/model/model.safetensors"

    def folder(self, number: int) -> Path:
        """The package of a version. It is shared: restore what you change."""
        return Path(self.client.get_model_version_download_uri(NAME, str(number)).removeprefix("file://"))
