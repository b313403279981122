"""Recorded code is the code that ran: in experiments, worktrees and copies, whatever is installed or edited."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.services.dvc_command import make_clone
from pipeline.sweep.process import ExperimentProcess, Origin, read_baseline
from vaeline.io.workspace import Workspace
from workspaces import ROOT, commit, execute

LIBRARY = Path("src/vaeline/errors.py")
PROBE = '''
"""A stage that writes what the library's code says."""
import json
from pathlib import Path
from vaeline.errors import TRY_AGAIN

def main() -> None:
    Path("probe.json").write_text(json.dumps({"code": TRY_AGAIN}))
'''
# the first stage edits the repository that the experiment was made of, as its user may while the experiment runs
STAGES = """
stages:
  edit:
    {cmd: 'sh edit.sh > edited.txt', outs: [edited.txt]}
  probe:
    cmd: exec python pipeline/stages/runner.py probe
    deps: [edited.txt, src/vaeline/errors.py]
    metrics: [{probe.json: {cache: false}}]
"""
EDIT = f'sed -i "s/TRY_AGAIN = 75/TRY_AGAIN = 1075/" "$EDITED/{LIBRARY}"; echo edited\n'
OLD = {"code": 75}


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose code is the installed one."""
    folder = tmp_path / "original"
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline" / "stages" / "probe.py").write_text(PROBE)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "edit.sh").write_text(EDIT)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    (folder / ".gitignore").write_text("__pycache__/\n/edited.txt\n.vaeline/\n/.dvc/tmp\n/.dvc/cache\n")
    commit(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("EDITED", str(folder))
    monkeypatch.chdir(folder)
    return folder


def experiments(repository: Path) -> dict[str, object]:
    """What the probe found in each DVC experiment, which itself has the code before the edit."""
    refs = execute("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*", cwd=repository).stdout.split()
    found = [ref for ref in refs if "/exec/" not in ref and "/celery/" not in ref]
    for ref in found:
        assert "= 1075" not in execute("git", "show", f"{ref}:{LIBRARY}", cwd=repository).stdout
    probes = (execute("git", "show", f"{ref}:probe.json", cwd=repository).stdout for ref in found)
    return {ref.rpartition("/")[2]: json.loads(text) for ref, text in zip(found, probes, strict=True)}


def test_an_experiment_runs_the_code_that_it_was_made_of(original: Path):
    execute("dvc", "exp", "run", "--temp", cwd=original)
    assert "= 1075" in (original / LIBRARY).read_text(), "edited meanwhile"
    assert list(experiments(original).values()) == [OLD]


@pytest.mark.slow
def test_a_queued_experiment_runs_the_code_that_was_queued_and_the_run_cache_keeps_its_numbers(original: Path):
    execute("dvc", "exp", "run", "--queue", "--name", "queued", cwd=original)
    execute("sh", "edit.sh", cwd=original)
    execute("dvc", "exp", "run", "--run-all", cwd=original)
    assert experiments(original) == {"queued": OLD}
    execute("git", "checkout", "-q", str(LIBRARY), cwd=original)
    execute("dvc", "exp", "run", "--temp", "--name", "again", cwd=original)
    assert experiments(original) == {"queued": OLD, "again": OLD}


@pytest.mark.slow
def test_a_trial_and_an_experiment_of_ours_run_the_code_of_their_baseline(original: Path):
    here = Workspace(Path(), original)
    origin = Origin(here, read_baseline(here), original / ".vaeline" / "s", {})
    ended = ExperimentProcess(origin, "t", [], {}).wait()
    assert "reason" not in ended, ended
    assert "= 1075" in (original / LIBRARY).read_text(), "edited meanwhile"
    assert experiments(original) == {"t": OLD}


def test_a_worktree_and_a_clone_run_their_own_code_and_a_copy_without_code_is_refused(original: Path):
    tree, commit = original.parent / "tree", execute("git", "rev-parse", "HEAD", cwd=original).stdout.strip()
    execute("git", "worktree", "add", "-q", str(tree), cwd=original)
    execute("sh", "edit.sh", cwd=original)
    runner = (sys.executable, "pipeline/stages/runner.py", "probe")
    for folder in (make_clone(original, original.parent / "clone", commit), tree):  # as `reproduce` makes its clone
        execute(*runner, cwd=folder)
        assert json.loads((folder / "probe.json").read_text()) == OLD
    assert "= 1075" in (original / LIBRARY).read_text(), "edited meanwhile"
    shutil.rmtree(tree / "src")
    done = execute(*runner, cwd=tree, check=False)
    library = original / "src" / "vaeline"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tree}: stage probe would run the vaeline of {library}, not the one beside dvc.yaml\n",
    )
