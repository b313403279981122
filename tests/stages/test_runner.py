"""Recorded code is the code that ran: in experiments, worktrees and copies, whatever is installed or edited."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from workspaces import ROOT, execute

LIKELIHOODS = Path("src/vaeline/core/likelihoods.py")
PROBE = '''
"""A stage that writes the log-density of a black image: 0 squared error, 4 pixels, sigma 1."""
import json
from pathlib import Path
import torch
from vaeline.core.likelihoods import Gaussian

def main() -> None:
    black = torch.zeros(1, 1, 2, 2)
    Path("probe.json").write_text(json.dumps({"density": Gaussian(1.0).log_prob(black, black).item()}))
'''
# the first stage edits the repository that the experiment was made of, as its user may while the experiment runs
STAGES = """
stages:
  edit:
    {cmd: 'sh edit.sh > edited.txt', outs: [edited.txt]}
  probe:
    cmd: exec python pipeline/stages/runner.py probe
    deps: [edited.txt, src/vaeline/core/likelihoods.py]
    metrics: [{probe.json: {cache: false}}]
"""
EDIT = f'sed -i "s/return -weight/return 1000 - weight/" "$EDITED/{LIKELIHOODS}"; echo edited\n'
DENSITY = pytest.approx({"density": -3.675754})  # -2 log(2 pi)


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose code is the installed one."""
    folder = tmp_path / "original"
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline" / "stages" / "probe.py").write_text(PROBE)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "edit.sh").write_text(EDIT)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    (folder / ".gitignore").write_text("__pycache__/\n/edited.txt\n.vaeline/\n/.dvc/tmp\n/.dvc/cache\n")
    execute("git", "init", "-q", cwd=folder)
    execute("git", "add", "-A", cwd=folder)
    execute("git", "commit", "-qm", "Start", cwd=folder)
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("EDITED", str(folder))
    return folder


@pytest.mark.parametrize("way", ["--temp", pytest.param("--queue", marks=pytest.mark.slow)])
def test_an_experiment_runs_the_code_that_it_was_made_of(original: Path, way: str):
    execute("dvc", "exp", "run", way, cwd=original)
    if way == "--queue":
        execute("sh", "edit.sh", cwd=original)
        execute("dvc", "exp", "run", "--run-all", cwd=original)
    refs = execute("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*", cwd=original).stdout.split()
    (experiment,) = [ref for ref in refs if "/exec/" not in ref and "/celery/" not in ref]
    assert json.loads(execute("git", "show", f"{experiment}:probe.json", cwd=original).stdout) == DENSITY
    assert "1000 -" in (original / LIKELIHOODS).read_text(), "edited meanwhile"
    assert "1000 -" not in execute("git", "show", f"{experiment}:{LIKELIHOODS}", cwd=original).stdout


def test_a_worktree_runs_its_own_code_and_a_copy_without_code_is_refused(original: Path):
    tree = original.parent / "tree"
    execute("git", "worktree", "add", "-q", str(tree), cwd=original)
    execute("sh", "edit.sh", cwd=original)
    runner = (sys.executable, "pipeline/stages/runner.py", "probe")
    execute(*runner, cwd=tree)
    assert "1000 -" in (original / LIKELIHOODS).read_text(), "edited meanwhile"
    assert json.loads((tree / "probe.json").read_text()) == DENSITY
    shutil.rmtree(tree / "src")
    done = execute(*runner, cwd=tree, check=False)
    library = original / "src" / "vaeline"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tree}: stage probe would run the vaeline of {library}, not the one beside dvc.yaml\n",
    )
