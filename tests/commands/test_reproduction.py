"""What `vaeline reproduce` refuses before it computes, and how it tells what differs."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.commands import reproduction
from pipeline.commands.model_differences import differences
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Changes, Lineage
from vaeline.tracking.outbox import Outbox
from vaeline.tracking.provenance import CUT
from workspaces import ROOT, execute

LINEAGE = Lineage("m", "1", (), {"vaeline.git_dirty": "false"}, run_id="r")


def of(**tags: str) -> Lineage:
    return replace(LINEAGE, tags={**LINEAGE.tags, **{f"vaeline.{key}": value for key, value in tags.items()}})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose only code reads params."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".gitignore"):
        (root / name).write_text((ROOT / name).read_text())
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("")
    (root / "src").symlink_to(ROOT / "src")
    execute("git", "init", "-q", cwd=root)
    execute("git", "add", "-A", cwd=root)
    execute("git", "commit", "-q", "-m", "Start", cwd=root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return root


def head(root: Path) -> str:
    return execute("git", "rev-parse", "HEAD", cwd=root).stdout.strip()


def params_of(root: Path) -> dict[str, str]:
    code = reproduction.READ_PARAMS
    found: dict[str, str] = json.loads(execute("python", "-c", code, cwd=root, env={"PYTHONPATH": "src"}).stdout)
    return found


def refused(lineage: Lineage) -> str:
    """What is said instead of computing; nothing stays behind."""
    said: list[str] = []
    with pytest.raises(UserError) as raised, reproduction.rebuilt(lineage, said.append):
        pass
    assert not list(Path.cwd().parent.glob("vaeline-reproduce-*"))
    assert execute("git", "status", "--short", cwd=Path.cwd()).stdout == ""
    return str(raised.value)


def test_what_was_not_recorded_is_said_before_anything_is_computed(repository: Path):
    assert "names no commit" in refused(LINEAGE)
    assert "names no commit" in refused(replace(of(git_commit=head(repository)), run_id=""))
    assert f"its commit {'a' * 40} is not in this clone; `git fetch --all`" in refused(of(git_commit="a" * 40))
    dirty = of(git_commit=head(repository), git_dirty="true")
    assert "which its run r does not hold" in refused(dirty)
    assert "more than 1,000,000 bytes" in refused(replace(dirty, changes=Changes(b"diff" + CUT)))
    nonsense = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    assert "do not fit its commit: git: x: No such file" in refused(replace(dirty, changes=Changes(nonsense)))


def test_other_params_than_the_runs_are_refused_before_anything_is_computed(repository: Path):
    lineage = replace(of(git_commit=head(repository)), params=params_of(repository) | {"train.beta": "4.0"})
    assert refused(lineage) == "the checkout's params.yaml: train.beta: 1.0, the run had 4.0"


def test_the_runs_own_changes_bring_its_params_back(repository: Path, monkeypatch: pytest.MonkeyPatch):
    params = repository / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("beta: 1.0 ", "beta: 4.0 "))
    diff = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    lineage = replace(
        of(git_commit=head(repository), git_dirty="true", git_untracked='["new.py"]'),
        params=params_of(repository),
        changes=Changes(diff),
    )
    params.write_text(text)
    monkeypatch.setattr(reproduction, "_reproduce", lambda *_: None)
    lineage = replace(lineage, tags={**lineage.tags, "vaeline.machine.device": "cpu X", "vaeline.machine.threads": "3"})
    said: list[str] = []
    with reproduction.rebuilt(lineage, said.append) as project:
        assert "beta: 4.0" in (project / "params.yaml").read_text()
        assert str(project / ".dvc" / "cache") in (project / ".dvc" / "config.local").read_text()
    assert not project.exists()
    assert said == [
        "applied the run's uncommitted changes of params.yaml",
        "VAELINE_THREADS=3, as then",
        "VAELINE_DEVICE=cpu, as then",
        "not kept, for git did not follow them: new.py",
    ]
    with reproduction.rebuilt(lineage, said.append, keep=True) as project:
        pass
    assert project.exists()
    assert said[-1] == f"kept: {project.parent}"


def made(
    folder: Path, weights: dict[str, float], config: dict[str, object], history: str = "epoch,elbo\n1,-2\n"
) -> Path:
    """What a making leaves, as far as it is compared."""
    for name in ("data/prepared", "models", "reports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    splits = {"train": {"count": 3}}
    (folder / "data" / "prepared" / "manifest.json").write_text(json.dumps({"splits": splits}))
    tensors = {name: np.full(2, value, np.float32) for name, value in weights.items()}
    save_file(tensors, folder / "models" / "model.safetensors")
    (folder / "models" / "config.json").write_text(json.dumps(config))
    (folder / "reports" / "history.csv").write_text(history)
    run = Outbox(Workspace(folder, folder)).create("k")
    run.append("tags", values={"vaeline.machine.torch": "2", "vaeline.machine.threads": "1"})
    return folder


def test_identical_is_identical(tmp_path: Path):
    one, other = (made(tmp_path / name, {"a": 1.0}, {"x": 1}) for name in "ab")
    lineage = of(data_digest=file_digest(one / "data" / "prepared" / "manifest.json"))
    history = (one / "reports" / "history.csv").read_bytes()
    assert differences(lineage, one / "models", history, other) == []


def test_each_difference_is_told_with_its_size_and_what_may_be_why(tmp_path: Path):
    one = made(tmp_path / "a", {"a": 1.0, "b": 2.0}, {"model": {"dim": 3}})
    other = made(tmp_path / "b", {"a": 1.0, "b": 2.5}, {"model": {"dim": 4}}, "epoch,elbo\n1,-2.25\n2,-1\n")
    lineage = replace(of(data_digest="d" * 64), dataset={"images": {"train": 5}})
    lineage = replace(lineage, tags={**lineage.tags, "vaeline.machine.torch": "1", "vaeline.machine.threads": "1"})
    found = differences(lineage, one / "models", (one / "reports" / "history.csv").read_bytes(), other)
    assert found[0].startswith("data/prepared: digest ")
    assert found[1] == "data/prepared: train has 3 images, had 5"
    assert found[2].startswith("models: digest ")
    assert found[3:] == [
        "models/config.json: model.dim: 4, was 3",
        "models/model.safetensors: 1 of 2 tensors differ, by at most 0.5 (b)",
        "reports/history.csv: 2 epochs, were 1",
        "reports/history.csv: elbo differs by at most 0.25",
        "the machine: torch is 2, was 1",
    ]
    unknown = differences(of(), one / "models", None, other)
    assert unknown[-1] == "the machine that trained it is not recorded"
    alike = of(**{"machine.torch": "2", "machine.threads": "1"})
    assert differences(alike, one / "models", None, other)[-1] == "the machines are alike: threads 1, torch 2"
