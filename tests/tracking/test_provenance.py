import json
import subprocess
from pathlib import Path

import pytest

from vaeline.config import read_params
from vaeline.digests import file_digest
from vaeline.tracking.provenance import flatten_metrics, flatten_params, run_start

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def checkout(repository: Path) -> Path:
    (repository / "dvc.lock").write_text("a")
    (repository / "code.py").write_text("a = 1\n")
    for command in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    return repository


def test_params_are_told_by_key_path():
    flat = flatten_params(PARAMS)
    assert flat["train.beta"] == "1.0"
    assert flat["data.source.kind"] == "fashion-mnist"
    assert flat["register.name"] == PARAMS.register_.name
    assert json.loads(flat["model.network.hidden"]) == list(PARAMS.model.network.hidden)


def test_metrics_are_told_by_path_and_what_is_no_number_is_left_out():
    report = {"test": {"elbo": -1, "units": {"active": 2}, "note": "x", "nll": None, "ok": True}, "k": 100}
    assert flatten_metrics(report, "evaluate/") == {
        "evaluate/test/elbo": -1.0,
        "evaluate/test/units/active": 2.0,
        "evaluate/k": 100.0,
    }


def test_the_commit_is_told_and_a_clean_tree_is_clean(checkout: Path):
    (checkout / "untracked.txt").write_text("x")
    start = run_start(PARAMS)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert start.tags["vaeline.git_commit"] == start.tags["mlflow.source.git.commit"] == head
    assert start.tags["vaeline.git_dirty"] == "false"
    assert start.diff == ""


def test_changed_tracked_files_are_told_as_a_diff_but_not_the_lock_that_dvc_writes(checkout: Path):
    (checkout / "dvc.lock").write_text("b")
    assert run_start(PARAMS).tags["vaeline.git_dirty"] == "false"
    (checkout / "code.py").write_text("a = 2\n")
    start = run_start(PARAMS)
    assert start.tags["vaeline.git_dirty"] == "true"
    assert "+a = 2" in start.diff
    assert "dvc.lock" not in start.diff


def test_without_git_a_run_starts_all_the_same(repository: Path):
    start = run_start(PARAMS)
    assert "vaeline.git_commit" not in start.tags
    assert start.experiment == PARAMS.register_.name
    assert start.dataset is None


def test_a_runs_name_says_what_is_unusual_about_its_training(repository: Path):
    unusual = {"objective": "iwae", "samples": 50, "estimator": "doubly-reparameterised"}
    changed = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update=unusual)})
    assert run_start(changed).name == run_start(PARAMS).name + "-iwae-k50-doubly-reparameterised"


def test_experiment_and_flow_are_named_by_the_environment(repository: Path, monkeypatch: pytest.MonkeyPatch):
    assert run_start(PARAMS).name.startswith("gaussian-mlp-z")
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lamb")
    monkeypatch.setenv("VAELINE_FLOW_RUN_ID", "1234")
    start = run_start(PARAMS)
    assert start.name == start.tags["vaeline.dvc_experiment"] == "brave-lamb"
    assert start.tags["vaeline.flow_run_id"] == "1234"


def test_the_data_set_is_told_by_its_manifest(repository: Path):
    manifest = repository / "data" / "prepared" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"shape": [1, 2, 3]}')
    start = run_start(PARAMS)
    assert start.dataset == {"name": "fashion-mnist", "digest": file_digest(manifest), "manifest": {"shape": [1, 2, 3]}}
    assert start.tags["vaeline.data_digest"] == file_digest(manifest)
