"""Whole sweeps on a repository whose stages are lines of shell: real Git, DVC and MLflow's sqlite store."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from prefect.exceptions import ParameterTypeError

from pipeline.flows.sweep import sweep_flow
from pipeline.sweep.state import folder
from pipeline.sweep.trial import clear, read_baseline
from vaeline.errors import UserError
from vaeline.io.locks import locked
from workspaces import execute, lines_with, runs, tiny_clone, vaeline


def read(repository: Path, name: str) -> dict[str, object]:
    """A sweep's state."""
    state: dict[str, object] = json.loads((repository / ".vaeline" / "sweeps" / name / "state.json").read_text())
    return state


def _pid(log: Path) -> int:
    """The stage that said it waits."""
    return int(lines_with(log.read_text(), "waiting ")[0].split()[1])


def trained(repository: Path) -> list[str]:
    """The betas that were trained."""
    return sorted(line.split()[0] for line in (repository / "trained").read_text().splitlines())


def test_a_sweep_runs_all_ranks_them_and_leaves_the_workspace_alone(repository: Path):
    before = execute("git", "status", "--porcelain", cwd=repository).stdout
    done = vaeline(
        "sweep", "train.beta=4,3,2", "train.epochs=1", "--jobs", "2", "--name", "s", cwd=repository, check=False
    )
    assert done.returncode == 1, "one failed"
    assert execute("git", "status", "--porcelain", cwd=repository).stdout == before
    assert (repository / "prepared").read_text() == "once\n"
    assert trained(repository) == ["2", "3", "4"]
    assert {tuple(line.split()[1:]) for line in (repository / "trained").read_text().splitlines()} == {
        ("s", str(max(1, len(os.sched_getaffinity(0)) // 2)), f"s-0{number}-beta{beta}")
        for number, beta in enumerate((4, 3, 2), 1)
    }

    assert lines_with(done.stdout, "[2/3] s-02-beta3: failed: training diverged at step 2 (")
    assert lines_with(done.stdout, "[1/3] s-01-beta4: done, test.elbo -4 (")
    table = [line.split() for line in done.stdout.splitlines() if line.lstrip().startswith(("1 ", "2 ", "s-02"))]
    assert [row[:4] for row in table] == [
        ["1", "s-03-beta2", "2", "-2"],
        ["2", "s-01-beta4", "4", "-4"],
        ["s-02-beta3", "3", *table[2][2:4]],
    ]
    folder = repository / "reports" / "sweeps" / "s"
    assert {path.name for path in folder.iterdir()} == {
        "ranking.csv",
        "ranking.md",
        "parallel_coordinates.png",
        "rate_distortion.png",
    }
    assert "Running stage 'train'" in (repository / ".vaeline" / "sweeps" / "s" / "s-01-beta4.log").read_text()
    assert not list((repository / ".vaeline" / "sweeps" / "s" / "work").glob("*"))

    assert set(execute("dvc", "exp", "list", "--name-only", cwd=repository).stdout.split()) == {
        "s-01-beta4",
        "s-03-beta2",
    }
    assert lines_with(done.stdout, "dvc exp apply s-03-beta2")
    execute("dvc", "exp", "apply", "s-03-beta2", cwd=repository)
    assert (repository / "registered.txt").read_text() == "2\n", "the best has been completed"
    assert (repository / "seed.txt").read_text() == "another seed, uncommitted"


@pytest.mark.slow
def test_a_stopped_sweep_leaves_nothing_running_and_goes_on_with_what_is_missing(repository: Path):
    (repository / "hang").touch()
    command = [sys.executable, "-m", "pipeline.cli", "sweep", "train.beta=2,4", "--jobs", "2", "--name", "s"]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    folder = repository / ".vaeline" / "sweeps" / "s"
    logs = [folder / "s-01-beta2.log", folder / "s-02-beta4.log"]
    with (
        subprocess.Popen(
            command, cwd=repository, env={**os.environ, **away}, stdout=subprocess.PIPE, text=True
        ) as sweep,
        ExitStack() as stack,
    ):
        stack.callback(sweep.kill)
        deadline = time.monotonic() + 300
        while not all(log.exists() and "waiting" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(sweep.pid).children(recursive=True)
        family += [psutil.Process(_pid(log)) for log in logs]
        sweep.send_signal(signal.SIGTERM)
        assert sweep.stdout is not None
        said = sweep.stdout.read()
        assert sweep.wait(60) == 143
    assert lines_with(said, "the sweep goes on without MLflow: ", "127.0.0.1:9")
    assert lines_with(said, "stopped: 0 of 2 trials done; go on with: vaeline sweep --resume s")
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert not list((folder / "work").glob("*"))

    (repository / "hang").unlink()
    (repository / "trained").unlink()
    resumed = vaeline("sweep", "--resume", "s", "--no-register", cwd=repository)
    assert trained(repository) == ["2", "4"]
    assert not lines_with(resumed.stdout, "MLflow")
    assert read(repository, "s")["parent_run_id"], "what MLflow missed has arrived"
    again = vaeline("sweep", "train.beta=2,4", "--name", "s", "--no-register", cwd=repository, **away)
    assert lines_with(again.stdout, "sweep s: 2 of 2 trials done")
    assert lines_with(again.stdout, "not in MLflow: ", "try again with: vaeline sweep --resume s")
    assert trained(repository) == ["2", "4"], "nothing was missing"


def test_trials_may_begin_at_the_same_moment(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_baseline().identity, range(12)))
    assert len({str(identity) for identity in found}) == 1


def test_a_repository_of_another_user_is_refused_in_gits_words(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"^git: detected dubious ownership in repository at '.*'$"):
        read_baseline()


def test_a_clone_at_work_is_not_cleared_away(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    for name in ("working", "left"):
        (folder("s") / "work" / name).mkdir(parents=True)
    (folder("s") / "locks").mkdir()
    with locked(folder("s") / "locks" / "working"):
        clear("s")
    assert [path.name for path in (folder("s") / "work").glob("*/")] == ["working"]


def test_what_the_sweep_deployment_cannot_do_is_refused():
    for wrong in ({"jobs": 0}, {"trials": -1}, {"seed": -1}):
        with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
            sweep_flow.validate_parameters({"assignments": ["train.beta=1"]} | wrong)


def test_a_mistake_is_told_before_anything_runs(repository: Path):
    done = vaeline("sweep", "train.bata=1,2", "train.epochs=0", cwd=repository, check=False)
    assert done.returncode == 1
    assert [line[:30] for line in done.stderr.splitlines()] == [
        "error: sweep: train.epochs: mu",
        "error: sweep: train.bata: unkn",
    ]
    for arguments, line in {
        (): "error: nothing to vary: vaeline sweep KEY=VALUE",
        ("--resume", "none"): "error: --resume: there is no sweep 'none'",
        ("train.beta=1,2", "--trials", "3"): "error: --trials: how many a search draws",
        ("train.beta=1,2", "--metric", "test.wonder"): "error: --metric: is more of 'test.wonder' better or worse?",
    }.items():
        assert lines_with(vaeline("sweep", *arguments, cwd=repository, check=False).stderr, line)
    assert not (repository / ".vaeline" / "sweeps").exists()


def test_a_name_stands_for_one_request_on_one_baseline(repository: Path):
    (repository / ".vaeline" / "sweeps").mkdir(parents=True)
    vaeline("sweep", "train.beta=1", "--name", "s", "--no-register", cwd=repository)
    other = vaeline("sweep", "train.beta=2", "--name", "s", cwd=repository, check=False)
    assert lines_with(other.stderr, "error: sweep s: was asked for other things; choose another --name")
    (repository / "seed.txt").write_text("a third seed")
    moved = vaeline("sweep", "--resume", "s", cwd=repository, check=False)
    assert lines_with(moved.stderr, "error: sweep s: began on commit ", "other params or uncommitted changes")


@pytest.mark.slow
def test_a_search_draws_its_trials_and_the_best_is_among_them(repository: Path):
    arguments = ("train.beta=log:0.1..2", "--search", "bayesian", "--trials", "4", "--jobs", "2", "--name", "s")
    vaeline("sweep", *arguments, cwd=repository)
    betas = [float(beta) for beta in trained(repository)]
    assert len(set(betas)) == 4
    best = next(
        line for line in (repository / "reports/sweeps/s/ranking.csv").read_text().splitlines() if line[0] == "1"
    )
    assert float(best.split(",")[2]) == min(betas)


@pytest.mark.slow
def test_on_digits_trials_are_children_in_mlflow_and_only_the_best_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "src")
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    clone = tiny_clone(tmp_path)
    asked = ("train.learning_rate=0.01,1e6", "train.beta=1,4", "--jobs", "2", "--name", "s")
    assert vaeline("sweep", *asked, cwd=clone, check=False).returncode == 1
    vaeline("sync", cwd=clone)
    found = [run["tags"] for run in runs(clone)]
    (parent,) = [tags for tags in found if isinstance(tags, dict) and "vaeline.sweep_role" in tags]
    children = [tags for tags in found if isinstance(tags, dict) and "mlflow.parentRunId" in tags]
    assert {tags["vaeline.dvc_experiment"] for tags in children} == {
        f"s-0{number}-learning_rate{rate}-beta{beta}"
        for number, (rate, beta) in enumerate([("0.01", 1), ("0.01", 4), ("1e+06", 1), ("1e+06", 4)], 1)
    }
    decided = [tags["vaeline.dvc_experiment"] for tags in children if "vaeline.decision" in tags]
    assert decided == [parent["vaeline.sweep_best"]]
    execute("dvc", "exp", "apply", decided[0], cwd=clone)
    assert execute("dvc", "status", cwd=clone).stdout.strip() == "Data and pipelines are up to date."
