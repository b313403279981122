"""The whole pipeline on scikit-learn's digits: real DVC, sqlite MLflow, and Prefect without a server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from workbench import ROOT, execute, lines_with, read_lock, vaeline

STAGES = ["fetch", "prepare", "train", "evaluate", "sample", "theory", "register"]
TINY = {
    r"kind: fashion-mnist": "kind: digits",
    r"validation: 10000": "validation: 200",
    r"name: vaeline-fashion-mnist": "name: digits",
    r"importance_samples: \d+": "importance_samples: 4",
    r"latent_images: \d+": "latent_images: 50",
    r"training_images: \d+": "training_images: 100",
    r"hidden: \[.*\]": "hidden: [32]",
    r"  epochs: \d+": "  epochs: 3",
    r"rows: \d+": "rows: 2",
    r"minimum_active_units: \d+": "minimum_active_units: 0",
}


def tiny_clone(folder: Path) -> Path:
    """This checkout as a repository of its own, with params for seconds."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".vaeline", "__pycache__", "tmp", "cache", "data", "models", "reports"
    )
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    text = (folder / "params.yaml").read_text()
    for pattern, value in TINY.items():
        text, count = re.subn(pattern, value, text)
        assert count, f"params.yaml has no {pattern}"
    (folder / "params.yaml").write_text(text)
    execute("git", "init", "-q", "-b", "main", cwd=folder)
    execute("git", "add", "-A", cwd=folder)
    execute("git", "commit", "-q", "-m", "Start", cwd=folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_code() -> Iterator[None]:
    """Stages import the copy they run in, on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "src")
        patch.setenv("VAELINE_DEVICE", "cpu")
        yield


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A clone, and what its first `vaeline run` said."""
    clone = tiny_clone(tmp_path_factory.mktemp("clone"))
    return clone, vaeline("run", cwd=clone)


@pytest.fixture
def clone(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The clone after its first run."""
    return first_run[0]


def runs(repository: Path, experiment: str = "digits") -> list[dict[str, object]]:
    """The MLflow runs of a repository's own store: params, metrics and tags of each."""
    code = (
        "import json, mlflow; c = mlflow.MlflowClient();"
        f"e = c.get_experiment_by_name({experiment!r}) or c.search_experiments()[0];"
        "rs = [r for e in c.search_experiments() for r in c.search_runs([e.experiment_id])];"
        "print(json.dumps([dict(params=r.data.params, metrics=r.data.metrics, tags=r.data.tags,"
        " status=r.info.status, curve=len(c.get_metric_history(r.info.run_id, 'validation/elbo'))) for r in rs]))"
    )
    uri = f"sqlite:///{repository}/.vaeline/mlflow.db"
    done = execute(sys.executable, "-c", code, cwd=repository, env={"MLFLOW_TRACKING_URI": uri})
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_fresh_clone_gets_from_nothing_to_a_registered_model(first_run):
    clone, done = first_run
    assert lines_with(done.stderr, *(f"{name} ran" for name in STAGES))
    assert set(read_lock(clone)) == set(STAGES)
    assert lines_with(done.stdout, "test split, ", " (reports/metrics.json):")
    assert lines_with(done.stdout, "elbo", "±")
    assert lines_with(done.stdout, "model:    digits version 1: promoted", 'load_model("models:/digits@champion")')
    assert lines_with(done.stdout, "samples:  reports/samples/", "prior_samples")
    assert lines_with(done.stdout, "theory:   reports/theory/theory.md")
    assert lines_with(done.stdout, "runs:     make ui")
    for name in ("prior_samples", "reconstructions", "interpolation", "mixtures", "traversals"):
        assert (clone / "reports" / "samples" / f"{name}.png").stat().st_size > 0


def test_a_second_run_computes_nothing(clone: Path):
    before = (clone / "dvc.lock").read_bytes()
    done = vaeline("run", cwd=clone)
    assert lines_with(done.stderr, *(f"{name} cached" for name in STAGES))
    assert lines_with(done.stderr, "unchanged: digits version 1 (promoted), MLflow run ")
    assert lines_with(done.stdout, "model:    digits version 1: promoted")
    assert not lines_with(done.stderr, "Running stage")
    assert (clone / "dvc.lock").read_bytes() == before


def test_the_outputs_name_no_run_no_time_and_no_place(clone: Path):
    texts = [path for path in (clone / "reports").rglob("*") if path.suffix in (".json", ".csv")]
    texts += [clone / "models" / "config.json", clone / "data" / "prepared" / "manifest.json"]
    assert len(texts) >= 5
    for path in texts:
        assert str(clone) not in path.read_text()
        assert not re.search(r"20\d\d-\d\d-\d\d|run_id|hostname", path.read_text())


def test_metrics_and_plots_are_shown_by_dvc(clone: Path):
    assert "test.elbo" in execute("dvc", "metrics", "show", cwd=clone).stdout
    execute("dvc", "plots", "show", "-o", "plots", cwd=clone)
    page = (clone / "plots" / "index.html").read_text()
    shutil.rmtree(clone / "plots")
    for title in ("validation_elbo", "validation_kl", "dimension", "prior_samples.png"):
        assert title in page


def test_changed_pictures_retrain_nothing(clone: Path):
    params = clone / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("columns: 1", "columns: 2"))
    stale = json.loads(execute("dvc", "status", "--json", cwd=clone).stdout)
    params.write_text(text)
    assert set(stale) == {"sample"}


def test_the_run_is_in_mlflow_with_its_curve_and_its_model(clone: Path):
    vaeline("sync", cwd=clone)
    found = runs(clone)
    assert len(found) == 1
    run = found[0]
    assert run["curve"] == 3
    assert run["params"]["train.beta"] == "1.0"
    assert "evaluate/test.elbo" in run["metrics"] or "evaluate/test/elbo" in run["metrics"]
    assert {"vaeline.model_digest", "vaeline.flow_run_id"} <= set(run["tags"])


@pytest.mark.slow
def test_training_again_and_training_killed_give_the_same_lock(clone: Path):
    before = read_lock(clone)
    execute("dvc", "repro", "--force", "--single-item", "train", cwd=clone)
    assert read_lock(clone) == before
    params = clone / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("  epochs: 3", "  epochs: 40"))
    execute("dvc", "repro", "train", cwd=clone)
    whole = read_lock(clone)["train"]
    kill_in_training(clone)
    execute("dvc", "repro", "--force", "--single-item", "train", cwd=clone)
    assert read_lock(clone)["train"] == whole
    params.write_text(text)
    execute("dvc", "repro", cwd=clone)
    assert read_lock(clone) == before


def kill_in_training(clone: Path) -> None:
    """`dvc repro -f train`, killed with its stage after some epochs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["dvc", "repro", "--force", "--single-item", "train"]
    with subprocess.Popen(
        command,
        cwd=clone,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as repro:
        assert repro.stdout is not None
        assert next(line for line in repro.stdout if line.startswith("epoch 5/"))
        stages = psutil.Process(repro.pid).children(recursive=True)
        repro.send_signal(signal.SIGKILL)
        repro.wait()
    assert stages
    deadline = time.monotonic() + 20
    while any("pipeline.stages.train" in " ".join(command_line(stage)) for stage in stages):
        assert time.monotonic() < deadline, "the stage goes on without DVC"
        time.sleep(0.1)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_experiments_stand_side_by_side_in_one_store(clone: Path):
    execute("git", "add", "-A", cwd=clone)
    execute("git", "commit", "-q", "-m", "Run", cwd=clone)
    execute("dvc", "exp", "run", "--temp", "-S", "train.beta=4", cwd=clone)
    execute("dvc", "exp", "run", "--queue", "-S", "train.beta=8", cwd=clone)
    execute("dvc", "exp", "run", "--run-all", cwd=clone)
    vaeline("sync", cwd=clone)
    assert {run["params"]["train.beta"] for run in runs(clone)} == {"1.0", "4.0", "8.0"}


@pytest.mark.slow
def test_a_pulled_model_is_registered_elsewhere_with_its_history(clone: Path, tmp_path: Path):
    execute("git", "add", "-A", cwd=clone)
    execute("git", "commit", "-q", "--allow-empty", "-m", "Run", cwd=clone)
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
    assert any("elbo" in name for name in run["metrics"] if name.startswith("evaluate/"))
