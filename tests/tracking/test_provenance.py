import json
import platform
import re
import subprocess
from pathlib import Path

import pytest

from vaeline.config import read_params
from vaeline.io.digests import file_digest
from vaeline.io.workspace import RunContext, current_workspace
from vaeline.tracking.provenance import MAXIMUM_DIFF, flatten_metrics, flatten_params, headline_metrics, run_start

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml")


def git(*arguments: str, cwd: Path) -> None:
    subprocess.run(["git", *arguments], cwd=cwd, check=True)


@pytest.fixture
def checkout(repository: Path) -> Path:
    (repository / "dvc.lock").write_text("a")
    (repository / "code.py").write_text("a = 1\n")
    for command in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    return repository


def test_params_and_metrics_are_flattened_by_key_path():
    flat = flatten_params(PARAMS)
    assert (flat["train.beta"], flat["data.source.kind"]) == ("1.0", "fashion-mnist")
    assert flat["register.name"] == PARAMS.register_.name
    assert json.loads(flat["model.network.hidden"]) == list(PARAMS.model.network.hidden)
    report = {"test": {"elbo": -1, "units": {"active": 2}, "note": "x", "nll": None, "ok": True}, "k": 100}
    assert flatten_metrics(report) == {"test/elbo": -1.0, "test/units/active": 2.0, "k": 100.0}


def test_mlflow_shows_what_compares_runs_and_leaves_the_rest_in_the_artifact():
    test = {"elbo": -3.0, "elbo_se": 0.1, "importance_samples": 9, "active_units": 2}
    latent = {"mutual_information": 1.5, "rate": 2.0, "mmd": {"squared": 0.1, "points": 5}}
    report = {"validation": {"elbo": -2.0, "kl": 1.0}, "test": test, "latent": latent}
    assert headline_metrics(report) == {
        "validation_elbo": -2.0,
        "test_elbo": -3.0,
        "test_active_units": 2.0,
        "test_latent_mutual_information": 1.5,
        "test_latent_mmd_squared": 0.1,
    }


def test_the_commit_is_told_and_a_clean_tree_is_clean(checkout: Path):
    (checkout / "untracked.txt").write_text("x")
    start = run_start(current_workspace(), PARAMS)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert start.tags["vaeline.git_commit"] == start.tags["mlflow.source.git.commit"] == head
    assert start.tags["vaeline.git_dirty"] == "false"
    assert start.diff == b""


def test_a_repository_that_git_does_not_trust_is_told_with_the_way_out(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "vaeline.git_commit" not in run_start(current_workspace(), PARAMS).tags
    (said,) = caplog.messages
    assert said.endswith(f"git config --global --add safe.directory {checkout}")


def test_changed_tracked_files_are_told_as_a_diff_but_not_the_lock_that_dvc_writes(checkout: Path):
    (checkout / "dvc.lock").write_text("b")
    assert run_start(current_workspace(), PARAMS).tags["vaeline.git_dirty"] == "false"
    (checkout / "code.py").write_text("a = 2\n")
    start = run_start(current_workspace(), PARAMS)
    assert start.tags["vaeline.git_dirty"] == "true"
    assert b"+a = 2" in start.diff
    assert b"dvc.lock" not in start.diff


def test_untracked_files_are_recorded_by_name_for_no_diff_holds_them(checkout: Path):
    assert "vaeline.git_untracked" not in run_start(current_workspace(), PARAMS).tags
    (checkout / ".gitignore").write_text("*.npy\n")
    (checkout / "x.npy").write_text("x")
    (checkout / "neu é.py").write_text("b = 1\n")
    assert json.loads(run_start(current_workspace(), PARAMS).tags["vaeline.git_untracked"]) == [
        ".gitignore",
        "neu é.py",
    ]
    for number in range(200):
        (checkout / f"file with a longer name {number}.py").write_text("x")
    listed = run_start(current_workspace(), PARAMS).tags["vaeline.git_untracked"]
    assert len(listed) < 8000
    assert re.search(r"\.\.\. and \d+ more", listed)


def test_the_diff_applies_again_whatever_it_holds_and_whatever_the_users_settings_are(checkout: Path):
    for setting in ("diff.noprefix true", "diff.relative true", "color.ui always"):
        git("config", *setting.split(), cwd=checkout)
    (checkout / "latin.txt").write_bytes(b"na\xefve\r\n")
    (checkout / "picture.bin").write_bytes(bytes(range(256)))
    git("add", "latin.txt", "picture.bin", cwd=checkout)
    (checkout / "code.py").write_text("a = 2")  # no newline at its end
    diff = run_start(current_workspace(), PARAMS).diff
    changed = {name: (checkout / name).read_bytes() for name in ("latin.txt", "picture.bin", "code.py")}
    git("reset", "--hard", "-q", cwd=checkout)
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], input=diff, cwd=checkout, check=True)
    assert {name: (checkout / name).read_bytes() for name in changed} == changed


def test_a_diff_that_is_too_large_is_cut_and_says_so(checkout: Path):
    (checkout / "code.py").write_text("a = 2\n" * MAXIMUM_DIFF)
    diff = run_start(current_workspace(), PARAMS).diff
    assert len(diff) < MAXIMUM_DIFF + 20
    assert diff.endswith(b"\n... cut\n")


def test_the_versions_of_what_computes_are_told():
    told = json.loads(run_start(current_workspace(), PARAMS).tags["vaeline.versions"])
    assert told["python"] == platform.python_version()
    assert {"torch", "numpy", "mlflow", "dvc", "prefect"} <= set(told)


def test_without_git_a_run_starts_all_the_same_and_its_name_shows_what_is_unusual(repository: Path):
    start = run_start(current_workspace(), PARAMS)
    assert "vaeline.git_commit" not in start.tags
    assert (start.experiment, start.dataset) == (PARAMS.register_.name, None)
    assert start.name.startswith("gaussian-mlp-z")
    unusual = {"objective": "iwae", "samples": 50, "estimator": "doubly-reparameterised"}
    changed = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update=unusual)})
    assert run_start(current_workspace(), changed).name == f"{start.name}-iwae-k50-doubly-reparameterised"


def test_experiment_flow_sweep_and_data_are_recorded(repository: Path, monkeypatch: pytest.MonkeyPatch):
    context = RunContext(flow_run="1234", sweep="first", parent_run="abc")
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lamb")
    monkeypatch.setenv(*context.environment().popitem())
    manifest = repository / "data" / "prepared" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"shape": [1, 2, 3]}')
    start = run_start(current_workspace(), PARAMS)
    assert start.name == start.tags["vaeline.dvc_experiment"] == "brave-lamb"
    assert start.tags["vaeline.flow_run_id"] == "1234"
    assert (start.tags["vaeline.sweep"], start.tags["mlflow.parentRunId"]) == ("first", "abc")
    assert start.dataset == {"name": "fashion-mnist", "digest": file_digest(manifest), "manifest": {"shape": [1, 2, 3]}}
    assert start.tags["vaeline.data_digest"] == file_digest(manifest)
