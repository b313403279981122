"""The registered version of the model at hand, known without asking MLflow again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.flows.registered import next_steps, registered_version
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import tracking_uri
from workspaces import execute

KNOWN = (
    "import sys; from pipeline.flows.registered import registered_version; "
    "from vaeline.io.workspace import current_workspace; "
    "print(registered_version(current_workspace()), 'mlflow' in sys.modules)"
)


DECISION = {"name": "digits", "digest": "abc", "decision": "rejected", "reasons": []}


@pytest.fixture
def kept(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, of a model whose version was asked for before, and of a store that is away now."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (toy / "reports").mkdir()
    (toy / "reports" / "registration.json").write_text(json.dumps(DECISION))
    (toy / ".vaeline").mkdir()
    path = toy / ".vaeline" / "registered.json"
    path.write_text(json.dumps({"uri": "http://127.0.0.1:9", "name": "digits", "digest": "abc", "version": "7"}))
    return path


def test_a_version_once_asked_for_is_found_without_mlflow(kept: Path, toy: Path):
    done = subprocess.run([sys.executable, "-c", KNOWN], capture_output=True, text=True, check=True)
    assert done.stdout == "7 False\n"
    (toy / "reports" / "registration.json").unlink()
    assert registered_version(current_workspace()) is None, "nothing was registered here"


def test_the_next_steps_are_pages_of_the_run_and_the_version_and_the_commit(kept: Path, toy: Path):
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"run": "3/runs/f00"}))
    assert next_steps(current_workspace()).splitlines() == [
        "runs:     http://127.0.0.1:9/#/experiments/3/runs?compareRunsMode=CHART&viewStateShareKey=vaeline&"
        "workflowType=machine_learning",
        "          http://127.0.0.1:9/#/experiments/3/runs/f00?workflowType=machine_learning",
        "          http://127.0.0.1:9/#/models/digits/versions/7?workflowType=machine_learning",
    ]
    (toy / "reports" / "registration.json").unlink()
    (toy / "dvc.lock").write_text("schema: '2.0'\n")
    runs, keep = next_steps(current_workspace()).splitlines()
    assert runs == "runs:     http://127.0.0.1:9/#/experiments?workflowType=machine_learning"
    assert keep.startswith("keep:     git add params.yaml dvc.lock && git commit -m ")
    execute("git", "add", "params.yaml", cwd=toy)
    execute("git", "commit", "-qm", "Params", cwd=toy)
    assert next_steps(current_workspace()).splitlines()[1].startswith("keep:     git add dvc.lock && git commit -m ")


@pytest.mark.parametrize("gone", ["store", "model", "entry", "database"])
def test_another_model_store_or_a_damaged_entry_is_asked_for_again(
    kept: Path, toy: Path, gone: str, monkeypatch: pytest.MonkeyPatch
):
    match gone:
        case "store":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
        case "model":
            (toy / "reports" / "registration.json").write_text(json.dumps(DECISION | {"digest": "def"}))
        case "entry":
            kept.write_text("[]")
        case _:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
            kept.write_text(kept.read_text().replace("http://127.0.0.1:9", tracking_uri(current_workspace())))
            (toy / ".vaeline" / "mlflow.db").touch()
            assert registered_version(current_workspace()) == "7"
            (toy / ".vaeline" / "mlflow.db").unlink()
    assert registered_version(current_workspace()) is None
