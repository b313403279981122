"""The whole pipeline on scikit-learn's digits: real DVC, sqlite MLflow, and Prefect without a server."""

import json
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest

import command_line
from vaeline.io.digests import model_digest
from vaeline.io.workspace import Workspace
from vaeline.tracking.uploader import sync_all
from workspaces import RUNS, alive, begin, commit, execute, lines_with, read_lock, runs, vaeline

pytestmark = pytest.mark.usefixtures("own_code")
CHAMPION = "models:/digits@champion"
STAGES = ["fetch", "prepare", "train", "evaluate", "sample", "theory", "register", "report"]


def test_a_fresh_clone_gets_from_nothing_to_a_registered_model(first_run):
    clone, done = first_run
    assert lines_with(done.stderr, *(f"{name} ran" for name in STAGES))
    assert set(read_lock(clone)) == set(STAGES)
    assert lines_with(done.stdout, "test split, ", " (reports/metrics.json):")
    assert lines_with(done.stdout, "elbo", "±")
    assert lines_with(done.stdout, "model:    digits version 1: promoted", 'load_model("models:/digits@champion")')
    assert lines_with(done.stdout, "samples:  reports/samples/", "prior_samples")
    assert lines_with(done.stdout, "report:   reports/index.html")
    assert lines_with(done.stdout, "explore:  reports/explorer.html")
    assert lines_with(done.stdout, "runs:     vaeline ui")
    assert lines_with(done.stdout, "http://127.0.0.1:5000/#/experiments/1/runs/")
    assert lines_with(done.stdout, "http://127.0.0.1:5000/#/models/digits/versions/1")
    assert lines_with(done.stdout, "keep:     git add dvc.lock && git commit -m ")
    for name in ("prior_samples", "reconstructions", "interpolation", "mixtures", "traversals"):
        assert (clone / "reports" / "samples" / f"{name}.png").stat().st_size > 0


def test_a_second_run_computes_nothing_and_the_outputs_name_no_run_no_time_and_no_place(clone: Path):
    before = (clone / "dvc.lock").read_bytes()
    done = vaeline("run", cwd=clone)
    assert (done.stdout.splitlines()[0], done.stderr) == ("all stages up to date", "")
    assert lines_with(done.stdout, "model:    digits version 1: promoted")
    assert (clone / "dvc.lock").read_bytes() == before

    texts = [path for path in (clone / "reports").rglob("*") if path.suffix in (".json", ".csv", ".html")]
    texts += [clone / "models" / "config.json", clone / "data" / "prepared" / "manifest.json"]
    assert len(texts) >= 5
    for path in texts:
        assert str(clone) not in path.read_text()
        assert not re.search(r"20\d\d-\d\d-\d\d|run_id|hostname", path.read_text())


def test_metrics_and_plots_are_shown_by_dvc_and_changed_pictures_retrain_nothing(clone: Path):
    assert "test.elbo" in execute("dvc", "metrics", "show", cwd=clone).stdout
    execute("dvc", "plots", "show", "-o", "plots", cwd=clone)
    page = (clone / "plots" / "index.html").read_text()
    shutil.rmtree(clone / "plots")
    assert all(title in page for title in ("validation_elbo", "validation_kl", "dimension", "prior_samples.png"))
    params = clone / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("columns: 1", "columns: 2"))
    stale = json.loads(execute("dvc", "status", "--json", cwd=clone).stdout)
    params.write_text(text)
    assert set(stale) == {"sample", "report"}


def test_the_run_is_in_mlflow_with_its_curve_its_model_and_its_page(clone: Path):
    sync_all(Workspace(clone, clone))
    (run,) = runs(clone)
    assert run["curve"] == 3
    assert run["params"]["train.beta"] == "1.0"
    assert {"test/elbo", "validation/elbo", "test/latent_mutual_information"} <= set(run["metrics"])
    assert {"vaeline.model_digest", "vaeline.flow_run_id"} <= set(run["tags"])
    assert run["tags"]["mlflow.note.content"].startswith("| test split |")
    tables = {"history.csv", "kl_per_dimension.csv", "metrics.json", "theory.json"}
    assert set(run["files"]) == tables | {"index.html", "explorer.html", "theory"}
    assert "models:/digits@champion" in (clone / "reports" / "index.html").read_text()


@pytest.mark.slow
def test_experiments_stand_side_by_side_in_one_store(clone: Path):
    commit(clone)
    execute("dvc", "exp", "run", "--temp", "-S", "train.beta=4", cwd=clone)
    execute("dvc", "exp", "run", "--queue", "-S", "train.beta=8", cwd=clone)
    execute("dvc", "exp", "run", "--run-all", cwd=clone)
    vaeline("sync", cwd=clone)
    assert {run["params"]["train.beta"] for run in runs(clone)} == {"1.0", "4.0", "8.0"}


@pytest.mark.slow
def test_a_pulled_model_is_registered_elsewhere_with_its_history(clone: Path, tmp_path: Path):
    commit(clone)
    execute("dvc", "remote", "add", "--force", "--local", "-d", "shared", str(tmp_path / "remote"), cwd=clone)
    execute("dvc", "push", cwd=clone)
    other = tmp_path / "other"
    execute("git", "clone", "-q", str(clone), str(other), cwd=tmp_path)
    execute("dvc", "remote", "add", "--local", "-d", "shared", str(tmp_path / "remote"), cwd=other)
    execute("dvc", "pull", cwd=other)
    before = read_lock(other)
    execute("dvc", "repro", "--force", "--single-item", "register", cwd=other)
    assert read_lock(other) == before, "the decision is content too"
    vaeline("sync", cwd=other)
    (run,) = runs(other)
    assert run["curve"] == 3
    assert "test/elbo" in run["metrics"]


@pytest.mark.parametrize("clone", RUNS, indirect=True)
def test_a_fresh_clone_knows_where_the_champion_comes_from_and_makes_it_again(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "other"
    execute("git", "clone", "-q", str(clone), str(other), cwd=tmp_path)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{clone}/.vaeline/mlflow.db"}
    monkeypatch.chdir(other)
    traced = json.loads(command_line.vaeline("trace", CHAMPION, "--json", **store))
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
    left = {path.name.partition("_")[0] for path in (tmp_path / "temporary").iterdir()}
    assert left <= {"torchinductor"}, "nothing but the folder that PyTorch makes when diffusers is imported"
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
    with begin("reproduce", CHAMPION, cwd=clone, TMPDIR=str(tmp_path)) as run:
        assert run.stdout is not None
        assert next(line for line in run.stdout if line.startswith("Running stage 'train'"))
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
    assert run.returncode != 0
    assert not list(tmp_path.iterdir())
    assert not alive(family)
