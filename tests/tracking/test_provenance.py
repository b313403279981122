import json
import platform
import re
from pathlib import Path

import pytest

from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.git import git, git_bytes
from vaeline.io.workspace import RunContext, current_workspace
from vaeline.tracking import provenance
from vaeline.tracking.provenance import (
    MAXIMUM_DIFF,
    RunStart,
    flatten_metrics,
    flatten_params,
    headline_metrics,
    run_start,
)

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def checkout(repository: Path) -> Path:
    (repository / "dvc.lock").write_text("a")
    (repository / "code.py").write_text("a = 1\n")
    for command in ("init -q", "add .", "commit -qm first"):
        git(repository, *command.split())
    return repository


def begin() -> RunStart:
    return run_start(current_workspace(), PARAMS)


def test_params_and_metrics_are_flattened_by_key_path_and_mlflow_shows_those_that_compare_runs():
    flat = flatten_params(PARAMS)
    assert (flat["train.beta"], flat["data.source.kind"]) == ("1.0", "fashion-mnist")
    assert flat["register.name"] == PARAMS.register_.name
    assert json.loads(flat["model.network.hidden"]) == list(PARAMS.model.network.hidden)
    test = {"elbo": -3, "elbo_se": 0.1, "importance_samples": 9, "active_units": 2, "n": "", "nll": None, "ok": True}
    latent = {"mutual_information": 1.5, "rate": 2.0, "mmd": {"squared": 0.1, "points": 5}}
    numbers = flatten_metrics({"test": test, "latent": latent, "k": 100})
    assert numbers.items() >= {"test/elbo": -3.0, "latent/mmd/squared": 0.1, "k": 100.0}.items()
    assert not numbers.keys() & {"test/n", "test/nll", "test/ok"}
    assert headline_metrics({"validation": {"elbo": -2.0, "kl": 1.0}, "test": test, "latent": latent}) == {
        "test/elbo": -3.0,
        "test/active_units": 2.0,
        "test/latent_mutual_information": 1.5,
        "test/latent_mmd_squared": 0.1,
    }


def test_the_commit_and_changed_tracked_files_are_recorded_but_not_the_lock_that_dvc_writes(checkout: Path):
    (checkout / "untracked.txt").write_text("x")
    (checkout / "dvc.lock").write_text("b")
    clean, head = begin(), git(checkout, "rev-parse", "HEAD")
    assert clean.tags["vaeline.git_commit"] == clean.tags["mlflow.source.git.commit"] == head
    assert (clean.tags["vaeline.git_dirty"], clean.diff) == ("false", b"")
    (checkout / "code.py").write_text("a = 2\n")
    dirty = begin()
    assert dirty.tags["vaeline.git_dirty"] == "true"
    assert b"+a = 2" in dirty.diff
    assert b"dvc.lock" not in dirty.diff
    (checkout / "code.py").write_text("a = 2\n" * MAXIMUM_DIFF)
    cut = begin().diff
    assert len(cut) < MAXIMUM_DIFF + 20
    assert cut.endswith(b"\n... cut\n")


def test_a_repository_that_git_does_not_trust_is_reported_with_the_command_that_trusts_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "vaeline.git_commit" not in begin().tags
    assert [m.endswith(f"git config --global --add safe.directory {checkout}") for m in caplog.messages] == [True]


def test_a_commit_whose_uncommitted_changes_git_does_not_find_in_time_is_left_out_with_a_warning(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def slow(root: Path, command: str, *words: str, **options: object) -> bytes:
        if command == "ls-files":
            raise UserError("git: timed out")
        return git_bytes(root, command, *words, **options)

    monkeypatch.setattr(provenance, "git_bytes", slow)
    assert "vaeline.git_commit" not in begin().tags
    assert [message.endswith("git: timed out") for message in caplog.messages] == [True]


def test_untracked_files_are_recorded_by_name_for_no_diff_holds_them(checkout: Path):
    assert "vaeline.git_untracked" not in begin().tags
    for name, text in ((".gitignore", "*.npy\n"), ("x.npy", "x"), ("neu é.py", "b = 1\n")):
        (checkout / name).write_text(text)
    assert json.loads(begin().tags["vaeline.git_untracked"]) == [".gitignore", "neu é.py"]
    for number in range(200):
        (checkout / f"file with a longer name {number}.py").write_text("x")
    listed = begin().tags["vaeline.git_untracked"]
    assert len(listed) < 8000
    assert re.search(r"\.\.\. and \d+ more", listed)


def test_the_diff_applies_again_whatever_it_holds_and_whatever_the_users_settings_are(checkout: Path):
    for setting in ("diff.noprefix true", "diff.relative true", "color.ui always"):
        git(checkout, "config", *setting.split())
    changed = {"latin.txt": b"na\xefve\r\n", "picture.bin": bytes(range(256)), "code.py": b"no newline at its end"}
    for name, content in changed.items():
        (checkout / name).write_bytes(content)
    git(checkout, "add", "latin.txt", "picture.bin")
    diff = begin().diff
    git(checkout, "reset", "--hard", "-q")
    git_bytes(checkout, "apply", "--whitespace=nowarn", "-", stdin=diff)
    assert {name: (checkout / name).read_bytes() for name in changed} == changed


def test_without_git_a_run_starts_all_the_same_with_its_versions_and_what_is_unusual_in_its_name(repository: Path):
    start = begin()
    assert "vaeline.git_commit" not in start.tags
    assert (start.experiment, start.dataset) == (PARAMS.register_.name, None)
    versions = json.loads(start.tags["vaeline.versions"])
    assert versions["python"] == platform.python_version()
    assert {"torch", "numpy", "mlflow", "dvc", "prefect"} <= set(versions)
    assert start.name.startswith(f"{PARAMS.model.likelihood.kind}-mlp-z")
    unusual = {"objective": "iwae", "samples": 50, "estimator": "doubly-reparameterised"}
    changed = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update=unusual)})
    assert run_start(current_workspace(), changed).name == f"{start.name}-iwae-k50-doubly-reparameterised"


def test_experiment_flow_sweep_and_data_are_recorded(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lamb")
    monkeypatch.setenv(*RunContext(flow_run="1234", sweep="first", parent_run="abc").environment().popitem())
    manifest = repository / "data" / "prepared" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"shape": [1, 2, 3]}')
    start, digest = begin(), file_digest(manifest)
    assert start.name == start.tags["vaeline.dvc_experiment"] == "brave-lamb"
    shown = [start.tags[tag] for tag in ("vaeline.flow_run_id", "vaeline.sweep", "mlflow.parentRunId")]
    assert shown == ["1234", "first", "abc"]
    assert start.dataset == {"name": "fashion-mnist", "digest": digest, "manifest": {"shape": [1, 2, 3]}}
    assert start.tags["vaeline.data_digest"] == digest
