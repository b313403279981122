"""`vaeline run -S`: an experiment in a copy, on a repository whose stages are lines of shell, and on digits."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.services import dvc_command
from vaeline.errors import UserError
from workspaces import commit, execute, lines_with, runs, tiny_clone, vaeline


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", *arguments])


def state(repository: Path) -> tuple[str, ...]:
    """What an experiment must leave as it is."""
    status = execute("git", "status", "--porcelain", cwd=repository).stdout
    files = [repository / name for name in ("params.yaml", "dvc.lock")]
    return status, *(path.read_text() if path.exists() else "" for path in files)


def test_an_experiment_leaves_the_workspace_as_it_is_whether_it_fails_or_not(repository: Path):
    before = state(repository)
    failed = run("-S", "train.beta=3")
    assert isinstance(failed.exception, UserError)
    lines = str(failed.exception).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("experiment beta3-")
    assert lines[0].endswith(" failed: training diverged at step 2; the workspace is as it was")
    assert execute("dvc", "exp", "list", "--name-only", cwd=repository).stdout == ""
    done = run("-S", "train.beta=4", "--name", "b4")
    assert "\nexperiment b4, test ELBO -4.0000: " in done.output, done.output
    assert state(repository) == before
    assert list((repository / ".vaeline" / "experiments" / "work").iterdir()) == []
    execute("dvc", "exp", "apply", "b4", cwd=repository)
    assert "beta: 4" in (repository / "params.yaml").read_text()
    assert (repository / "models" / "model.safetensors").read_text() == "4\n"
    taken = str(run("-S", "train.beta=5", "--name", "b4").exception)
    assert taken == "--name: experiment b4 exists; choose another name, or remove it: dvc exp remove b4"


def test_a_project_in_a_subfolder_whose_name_has_other_letters_and_spaces(toy: Path, monkeypatch: pytest.MonkeyPatch):
    top = toy / "pl\u00e4n b"
    shutil.copytree(toy, top / "inner", ignore=shutil.ignore_patterns(".git", top.name))
    monkeypatch.chdir(top / "inner")
    commit(top)
    done = run("-S", "train.beta=4", "--name", "b4", "--only", "fetch")
    assert "\nexperiment b4: " in done.output, done
    assert "WARNING" not in done.output
    assert execute("dvc", "exp", "list", "--name-only", cwd=top / "inner").stdout == "b4\n"


def test_what_would_run_is_printed_and_mistakes_are_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch):
    def would(stale: set[str], *arguments: str) -> str:
        monkeypatch.setattr(dvc_command, "stale_stages", lambda _: stale)
        return run("--dry-run", *arguments).output.strip()

    assert would({"train"}) == "would run: train, evaluate, register"
    assert would({"prepare"}, "--only", "train") == "would run: prepare, train"
    assert would({"register"}, "--only", "train") == "nothing to do"
    assert would(set(), "-S", "model.latent_dim=3") == "would run: train, evaluate, register"
    assert would(set(), "-S", "theory.images=30") == "nothing to do"
    assert would(set(), "--only", "train", "--force") == "would run: prepare, train"
    for arguments, line in {
        ("-S", "train.bata=4"): "-S: train.bata: unknown key; did you mean 'beta'?",
        ("--only", "trian"): "--only: found 'trian', allowed: prepare, train, evaluate, register",
        ("-S", "train.beta=4", "--name", "a b"): "--name: found 'a b', allowed: up to 40 letters, digits, - and _",
    }.items():
        assert str(run(*arguments).exception).startswith(line)
    assert run("--name", "x").exit_code == 2


@pytest.mark.slow
def test_ten_experiments_three_of_them_failing_are_in_one_mlflow_experiment_and_the_workspace_is_clean(
    tmp_path: Path, own_code: None
):
    clone = tiny_clone(tmp_path)
    execute("dvc", "repro", "prepare", cwd=clone)
    commit(clone)
    before = state(clone)
    assert before[0] == ""
    codes, last = [], ("evaluate", "register")
    for seed in range(1, 11):
        rate = "1e9" if seed in (3, 5, 8) else "0.01"
        changes = ("-S", f"train.seed={seed}", "-S", f"train.learning_rate={rate}", "-S", "train.epochs=1")
        done = vaeline("run", *changes, "--name", f"s{seed}", "--only", last[seed == 1], cwd=clone, check=False)
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == done.returncode
    assert codes == [0, 0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert state(clone) == before
    vaeline("sync", cwd=clone)
    found = runs(clone)
    assert sum(run["status"] == "FINISHED" for run in found) == 7
    assert {run["experiment"] for run in found} == {"digits"}
    listed = execute("dvc", "exp", "show", "--json", cwd=clone).stdout
    assert len(json.loads(listed)) == 2  # workspace and baseline
    assert len(execute("dvc", "exp", "list", "--name-only", cwd=clone).stdout.split()) == 7

    version, run = "models:/digits/1", next(r for r in found if r["tags"]["vaeline.dvc_experiment"] == "s4")
    first, second, third = json.loads(vaeline("compare", version, "s2", run["id"], "--json", cwd=clone).stdout)
    assert first["params"] == {"train.seed": "1"}
    assert (second["params"], third["params"]) == ({"train.seed": "2"}, {"train.seed": "4"})
    assert third["elbo"] == pytest.approx(run["metrics"]["test/elbo"], abs=1e-6)
    assert third["difference"] == pytest.approx(third["elbo"] - first["elbo"])
    assert third["difference_se"] < math.hypot(first["elbo_se"], third["elbo_se"]), "paired"
    table = vaeline("compare", version, "s2", cwd=clone).stdout
    assert lines_with(table, "train.seed", "1", "2")
    assert lines_with(table, "minus the first's, paired", "±")
    unknown = vaeline("compare", version, "s99", cwd=clone, check=False)
    assert lines_with(unknown.stderr, "error: 's99': allowed: models:/NAME/3, ")
