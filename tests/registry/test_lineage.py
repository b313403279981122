"""The lineage of a registered model, read back from a real store."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vaeline.io.workspace import current_workspace
from vaeline.registry import lineage
from vaeline.registry.lineage import Changes
from vaeline.registry.notes import NOTE, annotate
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import CUT, RunStart
from vaeline.tracking.runs import open_training_run
from vaeline.tracking.sync import upload_now

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIFF = b"""diff --git a/params.yaml b/params.yaml
index 1..2 100644
--- a/params.yaml
+++ b/params.yaml
@@ -1,2 +1,3 @@
 model:
--- x
+++ y
+  z: 1
diff --git "a/n\xc3\xa4her.py" "b/n\xc3\xa4her.py"
deleted file mode 100644
@@ -1 +0,0 @@
-gone
diff --git a/picture.png b/picture.png
GIT binary patch
literal 3
Kc${NkU|{@j00062

"""
DATASET = {
    "name": "digits",
    "digest": "d" * 64,
    "source": "digits",
    "manifest": {"shape": [1, 8, 8], "splits": {"train": {"count": 5}, "test": {"count": 2}}},
}


@pytest.fixture
def client(store: Path) -> "MlflowClient":
    """A client of a store with one registered model, version 1 of which a training made."""
    tags = {"vaeline.git_commit": "c" * 40, "vaeline.git_dirty": "true", "vaeline.git_untracked": '["new.py"]'}
    start = RunStart("exp", "run", {"train.beta": "4.0"}, tags, DATASET, DIFF)
    metrics = store.parent / "metrics.json"
    metrics.write_text('{"test": {"elbo": -3.0, "elbo_se": 0.1}}')
    with open_training_run(current_workspace(), "key", start) as run:
        run.metrics({"train/elbo": -3.5}, 1)
        run.tags({"vaeline.machine.threads": "2", "vaeline.versions": '{"torch": "1"}'})
        run.artifact(metrics, "reports")
    found = connect(current_workspace())
    run_id = upload_now(run.outbox, found, current_workspace())
    found.create_registered_model("m")
    decided = {"vaeline.decision": "promoted", "vaeline.reasons": '["better"]', "vaeline.gate": '{"gain": 1.5}'}
    found.create_model_version("m", (store.parent / "package").as_uri(), run_id, decided, description="How to use it.")
    found.set_registered_model_alias("m", "champion", "1")
    return found


def test_everything_that_made_a_model_is_found(client: "MlflowClient"):
    found = lineage.trace(client, "models:/m@champion")
    assert found == lineage.trace(client, "models:/m/1")
    content = json.loads(json.dumps(found.content()))
    assert content["model"]["uri"] == "models:/m/1"
    assert content["model"]["aliases"] == ["champion"]
    assert content["decision"] == {"decision": "promoted", "reasons": ["better"], "gate": {"gain": 1.5}}
    assert content["code"]["commit"] == "c" * 40
    assert content["code"]["untracked"] == ["new.py"]
    assert content["code"]["diff"]["bytes"] == len(DIFF)
    assert content["data"]["images"] == {"train": 5, "test": 2}
    assert content["data"]["shape"] == [1, 8, 8]
    assert content["machine"] == {"threads": "2"}
    assert content["versions"] == {"torch": "1"}
    assert content["params"] == {"train.beta": "4.0"}
    assert content["metrics"] == {"train/elbo": -3.5}
    assert content["evaluation"]["test"]["elbo_se"] == 0.1
    assert content["mlflow_run"]["status"] == "FINISHED"


def test_the_files_of_a_diff_are_listed_with_their_lines():
    expected = {"params.yaml": (2, 1), "näher.py": (0, 1), "picture.png": (0, 0)}
    assert Changes(DIFF).files() == expected
    assert not Changes(DIFF).cut
    assert Changes(DIFF[:90] + CUT).cut


def test_a_version_registered_by_hand_or_whose_run_is_gone_has_little_lineage(client: "MlflowClient"):
    client.create_model_version("m", "file:///nowhere")
    assert lineage.trace(client, "models:/m/2").content()["mlflow_run"]["id"] == ""
    gone = client.create_model_version("m", "file:///nowhere", "0" * 32, {"vaeline.reasons": "not JSON"})
    found = lineage.trace(client, f"models:/m/{gone.version}")
    assert (found.run_id, found.reasons, found.changes) == ("", [], None)


def test_notes_go_on_top_once_and_what_a_user_wrote_stays(client: "MlflowClient"):
    def shown() -> tuple[str, str | None]:
        found = lineage.trace(client, "models:/m/1")
        return found.tags[NOTE], client.get_model_version("m", "1").description

    for text in ("one", "one", "two"):
        annotate(client, lineage.trace(client, "models:/m/1"), text)
        assert shown() == (text, f"{text}\n\n---\n\nHow to use it.")
    client.set_tag(lineage.trace(client, "models:/m/1").run_id, NOTE, "mine")
    client.update_model_version("m", "1", "mine\n\n---\n\ntoo")
    annotate(client, lineage.trace(client, "models:/m/1"), "three")
    assert shown() == ("mine", "mine\n\n---\n\ntoo")
