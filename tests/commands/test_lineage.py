"""A registered model traced and made again, from a fresh clone of a repository that really ran."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vaeline.io.digests import model_digest
from workspaces import RUNS, execute, lines_with, runs, vaeline

pytestmark = pytest.mark.usefixtures("own_code")
CHAMPION = "models:/digits@champion"


@pytest.mark.parametrize("clone", RUNS, indirect=True)
def test_a_fresh_clone_knows_where_the_champion_comes_from_and_makes_it_again(clone: Path, tmp_path: Path):
    other = tmp_path / "other"
    execute("git", "clone", "-q", str(clone), str(other), cwd=tmp_path)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{clone}/.vaeline/mlflow.db"}
    traced = json.loads(vaeline("trace", CHAMPION, "--json", cwd=other, **store).stdout)
    assert traced["code"]["commit"] == execute("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()
    assert traced["code"]["dirty"] is False
    assert traced["model"]["model_digest"] == model_digest(clone / "models")
    (tmp_path / "temporary").mkdir()
    before = (clone / "dvc.lock").read_bytes(), len(runs(clone))
    done = vaeline("reproduce", CHAMPION, cwd=other, TMPDIR=str(tmp_path / "temporary"), **store)
    assert done.stdout.splitlines()[:2] == [
        "models:/digits/1: identical",
        f"  model digest {traced['model']['model_digest']}",
    ]
    assert lines_with(done.stderr, "epoch 3/3"), "computed, not taken from a cache"
    assert not list((tmp_path / "temporary").iterdir())
    assert execute("git", "status", "--short", cwd=other).stdout == ""
    assert not (other / "models").exists()
    assert ((clone / "dvc.lock").read_bytes(), len(runs(clone))) == before


@pytest.mark.slow
def test_on_another_machine_it_says_what_differs_and_by_how_much(clone: Path):
    env = {"ATEN_CPU_CAPABILITY": "default"}  # as if this were a processor without vector instructions
    done = vaeline("reproduce", CHAMPION, cwd=clone, check=False, **env)
    assert done.returncode == 1
    assert lines_with(done.stdout, "models:/digits/1: not identical")
    assert lines_with(done.stdout, "models/model.safetensors:", "tensors differ, by at most")
    assert lines_with(done.stdout, "reports/history.csv: differs")
    assert lines_with(done.stdout, "the machine: device is cpu DEFAULT, was cpu ")


@pytest.mark.slow
def test_an_interrupted_reproduction_leaves_nothing_behind(clone: Path, tmp_path: Path):
    command = [sys.executable, "-m", "pipeline.cli", "reproduce", CHAMPION]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        assert next(line for line in run.stderr if line.startswith("Running stage 'train'"))
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
    assert run.returncode != 0
    assert not list(tmp_path.iterdir())
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
