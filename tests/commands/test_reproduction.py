"""What `vaeline reproduce` refuses before it computes, and the clone in which it does."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands import reproduction
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Changes, Lineage
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
    """The error instead of a computation; nothing stays behind."""
    with pytest.raises(UserError) as raised, reproduction.reproduced(lineage, Workspace(), lambda _: None):
        pass
    assert not list(Path.cwd().parent.glob("vaeline-reproduce-*"))
    assert execute("git", "status", "--short", cwd=Path.cwd()).stdout == ""
    return str(raised.value)


def test_what_was_not_recorded_is_an_error_before_anything_is_computed(repository: Path):
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
    monkeypatch.setattr(reproduction, "stream", lambda *_: (0, []))
    lineage = replace(lineage, tags={**lineage.tags, "vaeline.machine.device": "cpu X", "vaeline.machine.threads": "3"})
    lines: list[str] = []
    with reproduction.reproduced(lineage, Workspace(), lines.append) as project:
        assert "beta: 4.0" in (project / "params.yaml").read_text()
        assert str(project / ".dvc" / "cache") in (project / ".dvc" / "config.local").read_text()
    assert not project.exists()
    assert lines == [
        "applied the run's uncommitted changes of params.yaml",
        "VAELINE_THREADS=3, as recorded",
        "VAELINE_DEVICE=cpu, as recorded",
        "not kept, as git did not track them: new.py",
    ]
    with reproduction.reproduced(lineage, Workspace(), lines.append, keep=True) as project:
        pass
    assert project.exists()
    assert lines[-1] == f"kept: {project.parent}"
