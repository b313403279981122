"""What `vaeline reproduce` refuses before it computes, the clone in which it does, and what it compares."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from package_damage import canary, code
from pipeline.commands import reproduction
from pipeline.commands.reproduction import differences
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Lineage
from vaeline.registry.load import verified
from vaeline.tracking.outbox import Outbox
from vaeline.tracking.provenance import CUT
from workspaces import ROOT, commit, execute


def lineage(diff: bytes | None = None, signed: bool = False, package: Any = None, **changes: Any) -> Lineage:
    """Of a run; changes of its commit, dirty flag, params and so on."""
    described = None if diff is None else {"files": ["params.yaml"], "cut": diff.endswith(CUT)}
    code = {"commit": "", "dirty": diff is not None, "diff": described, "untracked": []}
    content = {"machine": {}, "versions": {}, "params": {}, "data": {}}
    content["code"] = code | {key: changes.pop(key) for key in code.keys() & changes.keys()}
    return Lineage("models:/m/1", content | changes, package, diff, None, signed)


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
    commit(root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return root


def head(root: Path) -> str:
    return execute("git", "rev-parse", "HEAD", cwd=root).stdout.strip()


def refused(lineage: Lineage, run_changes: bool = False, lines: list[str] | None = None) -> str:
    """The error, in one line, instead of a computation; nothing stays behind."""
    log = (lines if lines is not None else []).append
    with (
        pytest.raises(UserError) as raised,
        reproduction.reproduced(lineage, Workspace(), log, run_changes=run_changes),
    ):
        pass
    assert not list(Path.cwd().parent.glob("vaeline-reproduce-*"))
    assert execute("git", "status", "--short", cwd=Path.cwd()).stdout == ""
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_what_was_not_recorded_is_an_error_before_anything_is_computed(repository: Path):
    assert "names no commit" in refused(lineage())
    assert f"its commit {'a' * 40} is not in this clone; `git fetch --all`" in refused(lineage(commit="a" * 40))
    assert "which its run does not hold" in refused(lineage(commit=head(repository), dirty=True))
    assert "more than 1,000,000 bytes" in refused(lineage(b"diff" + CUT, commit=head(repository)), True)
    nonsense = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    assert "do not fit its commit: git: x: No such file" in refused(lineage(nonsense, commit=head(repository)), True)


def test_changes_that_no_trusted_key_signed_are_shown_and_run_only_if_asked_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 17: code from a tracking store runs where a model is reproduced."""
    (repository / "src").unlink()
    (repository / "src").mkdir()
    (repository / "src/vaeline.py").write_bytes(code(tmp_path / "x") + b"# \x1b[2J\n")
    execute("git", "add", "-A", cwd=repository)
    diff = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    execute("git", "reset", "-q", "--hard", cwd=repository)
    hostile, lines = lineage(diff, commit=head(repository)), []
    assert refused(hostile, lines=lines).endswith("read them, then --run-changes runs them")
    assert any("os.mkdir" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not canary(tmp_path / "x").exists()
    for path in ("../../evil", ".git/hooks/post-checkout", "/tmp/evil"):
        new = f"diff --git a/{path} b/{path}\nnew file mode 100755\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+evil\n"
        assert "do not fit its commit" in refused(replace(hostile, diff=new.encode()), True)
    importing = ["python", "-c", "import vaeline"]
    monkeypatch.setattr(reproduction, "stream", lambda _, env, __: (subprocess.call(importing, env=env), []))
    with reproduction.reproduced(hostile, Workspace(), lines.append, run_changes=True):
        pass
    assert canary(tmp_path / "x").exists(), "the test's own proof that it would have run"


def test_the_runs_own_changes_bring_its_params_back(repository: Path, monkeypatch: pytest.MonkeyPatch):
    params = repository / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("beta: 1.0 ", "beta: 4.0 "))
    diff = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    machine = {"device": "cpu X", "threads": "3", "processes": "$(evil)"}
    given = {"untracked": ["new.py"], "machine": machine}
    signed = lineage(diff, signed=True, commit=head(repository), **given)
    params.write_text(text)
    monkeypatch.setattr(reproduction, "stream", lambda *_: (0, []))
    lines: list[str] = []
    with reproduction.reproduced(signed, Workspace(), lines.append) as project:
        assert "beta: 4.0" in (project / "params.yaml").read_text()
        assert str(project / ".dvc" / "cache") in (project / ".dvc" / "config.local").read_text()
    assert not project.exists()
    assert lines == [
        "applied the run's uncommitted changes of params.yaml",
        "VAELINE_THREADS=3, as recorded",
        "VAELINE_DEVICE=cpu, as recorded",
        "not kept, as git did not track them: new.py",
    ]
    with reproduction.reproduced(signed, Workspace(), lines.append, keep=True) as project:
        pass
    assert project.exists()
    assert lines[-1] == f"kept: {project.parent}"


def test_each_difference_has_its_size_and_what_may_be_the_cause(package: Path, tmp_path: Path):
    made = tmp_path / "made"
    for name in ("data/prepared", "models", "reports"):
        (made / name).mkdir(parents=True)
    manifest, history = made / "data/prepared/manifest.json", made / "reports/history.csv"
    manifest.write_text(json.dumps({"splits": {"train": {"count": 3}}}))
    history.write_text("epoch,elbo\n1,-2.25\n2,-1\n")
    for file in ("model.safetensors", "config.json"):
        (made / "models" / file).write_bytes((package / "artifacts/model" / file).read_bytes())
    run = Outbox(Workspace(made, made)).create("k")
    run.append("tags", values={"vaeline.machine.torch": "2", "vaeline.machine.threads": "1"})
    data = {"digest": file_digest(manifest)}
    same = replace(lineage(data=data, package=verified(package)), history=history.read_bytes())
    assert differences(same, made) == []

    tensors, config = load_file(made / "models/model.safetensors"), made / "models/config.json"
    name = "decoder.0.bias"
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, made / "models/model.safetensors")
    config.write_text(config.read_text().replace('"source": "digits"', '"source": "mnist"'))
    machine = {"torch": "1", "threads": "1"}
    other = lineage(data={"digest": "d" * 64}, machine=machine, package=same.package)
    found = differences(replace(other, history=b"epoch,elbo\n1,-2\n"), made)
    assert found[0].startswith("data/prepared: digest ")
    assert found[1].startswith("models: digest ")
    assert found[2:] == [
        "models/config.json: data.source: 'mnist', was 'digits'",
        f"models/model.safetensors: 1 of {len(tensors)} tensors differ, by at most 0.5 ({name})",
        "reports/history.csv: differs",
        "the machine: torch is 2, was 1",
    ]
    assert differences(same, made)[-1] == "the machine that trained it is not recorded"
