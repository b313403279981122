"""The lineage of a registered model, read back from a real store, and held against the package's manifest."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry import lineage
from vaeline.registry.registration import NOTE, annotate
from vaeline.registry.versions import utc
from vaeline.serving.model_files import load_model
from vaeline.serving.package import MANIFEST, SIGNATURE, TrainingCode, seal
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import CUT, RunStart
from vaeline.tracking.runs import open_training_run
from vaeline.tracking.uploader import upload_now

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMMIT = "c" * 40
DIFF = b"""diff --git a/params.yaml b/params.yaml
--- a/params.yaml
+++ b/params.yaml
@@ -1,2 +1,3 @@
 model:
--- x
+++ y
+  z: 1
diff --git a/n\xc3\xa4her.py b/n\xc3\xa4her.py
deleted file mode 100644
--- a/n\xc3\xa4her.py
+++ /dev/null
@@ -1 +0,0 @@
-gone
"""
DATASET = {
    "name": "digits",
    "digest": "d" * 64,
    "source": "digits",
    "manifest": {"shape": [1, 8, 8], "splits": {"train": {"count": 5}, "test": {"count": 2}}},
}


@pytest.fixture
def client(store: Path, package: Path) -> "MlflowClient":
    """A client of a store with one registered model, version 1 of which a training made."""
    tags = {"vaeline.git_commit": COMMIT, "vaeline.git_dirty": "true", "vaeline.git_untracked": '["new.py"]'}
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
    found.create_model_version("m", package.as_uri(), run_id, decided | {"vaeline.likelihood": "a lie"})
    found.set_registered_model_alias("m", "champion", "1")
    sealed_as(found, package, "1", TrainingCode(commit=COMMIT, diff=hashlib.sha256(DIFF).hexdigest()))
    return found


def sealed_as(client: "MlflowClient", package: Path, version: str, code: TrainingCode | None) -> None:
    for file in (MANIFEST, SIGNATURE):
        (package / file).unlink(missing_ok=True)
    tag = seal(package, "m", int(version), load_model(package / "artifacts/model"), code)
    client.set_model_version_tag("m", version, "vaeline.manifest", tag)


def test_everything_that_made_a_model_is_found(client: "MlflowClient"):
    found = lineage.trace(client, "models:/m@champion")
    content = json.loads(json.dumps(found.content))
    assert content == json.loads(json.dumps(lineage.trace(client, "models:/m/1").content))
    assert content["model"]["uri"] == found.uri == "models:/m/1"
    assert (content["model"]["aliases"], content["model"]["likelihood"]) == (["champion"], "gaussian")
    assert content["decision"] == {"decision": "promoted", "reasons": ["better"], "gate": {"gain": 1.5}}
    diff = {"bytes": len(DIFF), "cut": False, "files": ["params.yaml", "näher.py"]}
    assert content["code"] == {"commit": COMMIT, "dirty": True, "diff": diff, "untracked": ["new.py"]}
    assert content["data"]["images"] == {"train": 5, "test": 2}
    assert content["data"]["shape"] == [1, 8, 8]
    assert content["machine"] == {"threads": "2"}
    assert content["versions"] == {"torch": "1"}
    assert content["params"] == {"train.beta": "4.0"}
    assert content["metrics"] == {"train/elbo": -3.5}
    assert content["evaluation"]["test"]["elbo_se"] == 0.1
    assert content["mlflow_run"]["status"] == "FINISHED"
    assert (found.diff, found.history, found.signed) == (DIFF, None, False)


def test_the_manifest_says_which_code_it_was_and_a_trusted_key_that_it_was_so(
    client: "MlflowClient", package: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 17: what a tracking store says is taken for what was trained."""
    run_id = client.get_model_version("m", "1").run_id
    monkeypatch.setenv("VAELINE_SIGNING_KEY", str(sealed / "signer.pem"))
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
    digest = hashlib.sha256(DIFF).hexdigest()
    for code, refused in (
        (TrainingCode(commit=COMMIT, diff=digest), False),
        (TrainingCode(commit="d" * 40, diff=digest), True),
        (TrainingCode(commit=COMMIT, diff="0" * 64), True),
        (TrainingCode(commit=COMMIT, diff=None), True),
    ):
        sealed_as(client, package, "1", code)
        if refused:
            with pytest.raises(UserError, match=r"commit or git/uncommitted\.diff is not what its manifest names"):
                lineage.trace(client, "models:/m/1")
        else:
            assert lineage.trace(client, "models:/m/1").signed
    sealed_as(client, package, "1", None)
    assert not lineage.trace(client, "models:/m/1").signed, "the manifest does not know"
    client.set_tag(run_id, "vaeline.git_dirty", "false")
    sealed_as(client, package, "1", TrainingCode(commit=COMMIT, diff=digest))
    assert lineage.trace(client, "models:/m/1").diff == DIFF, "whatever the tag says"


def test_what_is_damaged_or_gone_in_the_store_leaves_little_lineage(client: "MlflowClient", package: Path):
    run_id = client.get_model_version("m", "1").run_id
    artifacts = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    for content in (b"[" * 100_000, b"\xff", b"[]", b"", b'{"gain": 1e999}'):
        (artifacts / "reports/metrics.json").write_bytes(content)
        for tag in ("gate", "reasons", "versions", "git_untracked"):
            client.set_model_version_tag("m", "1", f"vaeline.{tag}", content[:4000].decode("latin-1"))
        found = lineage.trace(client, "models:/m/1").content
        assert (found["evaluation"], found["decision"]["gate"], found["versions"]) == ({}, {}, {})
    (artifacts / lineage.DIFF).write_bytes(DIFF[:90] + CUT)
    sealed_as(client, package, "1", None)
    assert lineage.trace(client, "models:/m/1").content["code"]["diff"]["cut"]
    (artifacts / lineage.DIFF).write_bytes(bytes(2_000_000))
    with pytest.raises(UserError, match="found 2000000 bytes, allowed: at most"):
        lineage.trace(client, "models:/m/1")
    gone = client.create_model_version("m", package.as_uri(), "0" * 32)
    sealed_as(client, package, str(gone.version), None)
    with pytest.raises(UserError, match="its run is not in the tracking store"):
        lineage.trace(client, f"models:/m/{gone.version}")


def test_a_note_goes_on_top_of_a_run_and_what_a_user_wrote_stays(client: "MlflowClient"):
    run_id = client.get_model_version("m", "1").run_id
    for text in ("one", "one", "two"):
        annotate(client, run_id, text)
        assert client.get_run(run_id).data.tags[NOTE] == text
    client.set_tag(run_id, NOTE, "mine")
    annotate(client, run_id, "three")
    assert client.get_run(run_id).data.tags[NOTE] == "mine"


@pytest.mark.parametrize(
    ("moment", "text"), [(0, ""), (None, ""), (-1, ""), (2**62, ""), (1000, "1970-01-01T00:00:01+00:00")]
)
def test_times_of_a_store_that_can_be_none_are_left_empty(moment: int | None, text: str):
    assert utc(moment) == text
