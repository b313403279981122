"""The registered version of the model at hand, known without asking MLflow again."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.flows.registered import Registered, links, registered
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import tracking_uri

KNOWN = (
    "import sys; from pipeline.flows.registered import registered; "
    "from vaeline.io.workspace import current_workspace; "
    "print(registered(current_workspace()).version, 'mlflow' in sys.modules)"
)


@pytest.fixture
def known(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Registered:
    """A model whose version was asked for before, of a store that is away now."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (toy / "reports").mkdir()
    (toy / "reports" / "registration.json").write_text(json.dumps({"name": "digits", "digest": "abc"}))
    (toy / ".vaeline").mkdir()
    found = Registered(tracking_uri(current_workspace()), "digits", "abc", "7", "run")
    (toy / ".vaeline" / "registered.json").write_text(json.dumps(asdict(found)))
    return found


def test_a_version_once_asked_for_is_found_without_mlflow(known: Registered, toy: Path):
    assert registered(current_workspace()) == known
    done = subprocess.run([sys.executable, "-c", KNOWN], capture_output=True, text=True, check=True)
    assert done.stdout == "7 False\n"
    (toy / "reports" / "registration.json").unlink()
    assert registered(current_workspace()) is None, "nothing was registered here"


@pytest.mark.parametrize("gone", ["store", "model", "entry"])
def test_another_model_store_or_a_damaged_entry_is_asked_for_again(
    known: Registered, toy: Path, gone: str, monkeypatch: pytest.MonkeyPatch
):
    match gone:
        case "store":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
        case "model":
            (toy / "reports" / "registration.json").write_text(json.dumps({"name": "digits", "digest": "def"}))
        case "entry":
            (toy / ".vaeline" / "registered.json").write_text("{")
    found = registered(current_workspace())
    assert found and found.version is None, "the store is away"


def test_links_lead_to_a_server_that_is_known_and_a_database_that_is_gone_has_no_version(
    known: Registered, toy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example/")
    assert links(current_workspace(), known) == {
        "digits version 7": "https://mlflow.example/#/models/digits/versions/7",
        "MLflow run run": "https://mlflow.example/#/runs/run",
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    here = current_workspace()
    assert links(here, known) == {}, "no server shows a database file"
    (toy / ".vaeline" / "registered.json").write_text(json.dumps(asdict(replace(known, uri=tracking_uri(here)))))
    database = toy / ".vaeline" / "mlflow.db"
    database.touch()
    assert registered(here).version == "7"
    database.unlink()
    assert registered(here).version is None
