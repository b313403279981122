"""Whole sweeps on a repository whose stages are lines of shell: real Git, DVC and MLflow's sqlite store."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import command_line
from pipeline.cli import app
from pipeline.sweep.study import load_sweep
from uploads import until
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import alive, begin, execute, lines_with, runs, tiny_clone, vaeline

STATUS = ("git", "status", "--porcelain")


def trained(repository: Path) -> list[str]:
    """The betas that were trained."""
    return sorted(line.split()[0] for line in (repository / "trained").read_text().splitlines())


def sweep_state(repository: Path, *parts: str) -> Path:
    return repository.joinpath(".vaeline", "sweeps", "s", *parts)


def test_all_trials_run_once_and_are_reported_ranked_and_drawn_and_only_the_best_is_completed(repository: Path):
    before = execute(*STATUS, cwd=repository).stdout
    asked = ("sweep", "train.beta=4,3,2", "train.epochs=1", "--jobs", "2", "--name", "s")
    done = command_line.vaeline(*asked, code=1, width=200)  # one failed
    assert execute(*STATUS, cwd=repository).stdout == before, "the workspace is left alone"
    assert (repository / "prepared").read_text() == "once\n"
    assert trained(repository) == ["2", "3", "4"]
    cores = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {tuple(line.split()[1:]) for line in (repository / "trained").read_text().splitlines()} == {
        ("s", cores, f"s-0{number}-beta{beta}") for number, beta in enumerate((4, 3, 2), 1)
    }
    assert "Running stage 'train'" in sweep_state(repository, "s-01-beta4.log").read_text()
    assert not list(sweep_state(repository, "work").glob("*"))

    assert lines_with(done, "s-02-beta3: failed: training diverged at step 2 (")
    assert lines_with(done, "s-01-beta4: done, test.elbo -4 (")
    table = [line.replace("|", "").split()[:4] for line in done.splitlines() if line.startswith("| ")]
    assert table[2:4] == [["1", "s-03-beta2", "2", "-2"], ["2", "s-01-beta4", "4", "-4"]]
    assert table[4][:2] == ["s-02-beta3", "3"]
    pictures = {"parallel_coordinates.png", "slice.png", "importances.png", "rate_distortion.png"}
    found = {path.name for path in (repository / "reports" / "sweeps" / "s").iterdir()}
    assert found == {"ranking.csv", "ranking.md", *pictures}

    listed = execute("dvc", "exp", "list", "--name-only", cwd=repository).stdout.split()
    assert sorted(listed) == ["s-01-beta4", "s-03-beta2"]
    assert lines_with(done, "dvc exp apply s-03-beta2")
    execute("dvc", "exp", "apply", "s-03-beta2", cwd=repository)
    assert (repository / "registered.txt").read_text() == "2\n"
    assert (repository / "seed.txt").read_text() == "another seed, uncommitted"


def test_a_mistake_is_reported_before_anything_runs(repository: Path):
    for arguments, lines in {
        ("sample.rovs=1,2", "train.epochs=0"): ["sweep: train.epochs: must be", "sweep: sample.rovs: unknown key"],
        (): ["nothing to vary: vaeline sweep KEY=VALUE"],
        ("--name", "none"): ["--name: there is no sweep 'none'"],
        ("--name", "none", "--seed", "2"): ["--name: goes on with the sweep as it was asked"],
        ("train.beta=1,2", "--trials", "3"): ["--trials: how many a search draws"],
        ("train.warmup_epochs=0..99", "--search", "random", "--trials", "3"): [
            "sweep: train: warmup_epochs (99) must not"
        ],
    }.items():
        error = CliRunner().invoke(app, ["sweep", *arguments]).exception
        assert isinstance(error, UserError)
        assert all(found.startswith(line) for found, line in zip(str(error).splitlines(), lines, strict=True))
    assert not (repository / ".vaeline" / "sweeps").exists()


def hanging(repository: Path, name: str, *betas: int, **env: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A sweep whose two trials are at work for ever, and their processes."""
    (repository / "hang").touch()
    sweep = begin("sweep", f"train.beta={betas[0]},{betas[1]}", "--jobs", "2", "--name", name, cwd=repository, **env)
    folder = repository / ".vaeline/sweeps" / name
    logs = [folder / f"{name}-0{number}-beta{beta}.log" for number, beta in enumerate(betas, 1)]
    until(lambda: all(log.exists() and "waiting" in log.read_text() for log in logs))
    (repository / "hang").unlink()
    (repository / "trained").unlink()
    return sweep, [psutil.Process(int(lines_with(log.read_text(), "waiting ")[0].split()[1])) for log in logs]


@pytest.mark.slow
def test_a_stopped_sweep_leaves_nothing_running_and_goes_on_with_what_is_missing(repository: Path):
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    sweep, family = hanging(repository, "s", 2, 4, **away)
    family += psutil.Process(sweep.pid).children(recursive=True)
    sweep.send_signal(signal.SIGTERM)
    printed = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 143
    assert lines_with(printed, "the sweep goes on without MLflow: ", "127.0.0.1:9")
    assert lines_with(printed, "stopped: 0 of 2 trials done; go on with: vaeline sweep --name s")
    until(lambda: not alive(family), 20)
    assert not list(sweep_state(repository, "work").glob("*"))

    resumed = vaeline("sweep", "--name", "s", "--no-register", cwd=repository)
    assert trained(repository) == ["2", "4"]
    assert not lines_with(resumed.stdout, "MLflow")
    assert load_sweep(Workspace(Path(), repository), "s").study.user_attrs["parent_run"], "what MLflow missed arrived"
    again = vaeline("sweep", "train.beta=2,4", "--name", "s", "--no-register", cwd=repository, **away)
    assert lines_with(again.stdout, "sweep s: 2 of 2 trials done")
    assert lines_with(again.stdout, "not in MLflow: ", "try again with: vaeline sweep --name s")
    assert trained(repository) == ["2", "4"], "nothing was missing"


@pytest.mark.slow
def test_sweeps_at_once_disturb_neither_each_other_nor_what_a_killed_one_left(repository: Path):
    killed, trials = hanging(repository, "killed", 2, 8)
    again = vaeline("sweep", "--name", "killed", cwd=repository, check=False)
    assert (again.returncode, again.stderr) == (1, "error: sweep killed: another process is running it\n")
    for process in (killed, *trials):
        process.kill()
    killed.communicate()
    work = repository / ".vaeline/sweeps/killed/work"
    left = sorted(path.name for path in work.iterdir())
    assert left == ["killed-01-beta2", "killed-02-beta8"]
    options = ("--jobs", "2", "--no-register", "--name")
    both = [
        begin("sweep", f"train.beta={betas}", *options, name, cwd=repository)
        for name, betas in (("b", "4,5"), ("c", "6,7"))
    ]
    assert [(sweep.communicate(timeout=600), sweep.returncode)[1] for sweep in both] == [0, 0]
    assert sorted(path.name for path in work.iterdir()) == left
    vaeline("sweep", "train.beta=2,8", *options, "killed", cwd=repository)
    assert trained(repository) == ["2", "4", "5", "6", "7", "8"]
    assert list(work.iterdir()) == []
    for name, best in {"b": "b-01-beta4", "c": "c-01-beta6", "killed": "killed-01-beta2"}.items():
        ranking = (repository / "reports" / "sweeps" / name / "ranking.csv").read_text().splitlines()
        assert ranking[1].startswith(f"1,{best},")
        assert len(ranking) == 3
    assert len(execute("dvc", "exp", "list", "--name-only", cwd=repository).stdout.split()) == 6


@pytest.mark.slow
def test_on_digits_trials_are_children_in_mlflow_and_only_the_best_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "src")
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    clone = tiny_clone(tmp_path)
    asked = ("train.learning_rate=0.01,1e6", "train.beta=1,4", "register.name=other", "--jobs", "2", "--name", "s")
    done = vaeline("sweep", *asked, "--json", cwd=clone, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["gate"].startswith("other: promoted (")
    assert lines_with(done.stderr, "the best's gate:  other: promoted (")
    vaeline("sync", cwd=clone)
    found = [run["tags"] for run in runs(clone)]
    (parent,) = [tags for tags in found if isinstance(tags, dict) and "vaeline.sweep_role" in tags]
    children = [tags for tags in found if isinstance(tags, dict) and "mlflow.parentRunId" in tags]
    assert {tags["vaeline.dvc_experiment"] for tags in children} == {
        f"s-0{number}-learning_rate{rate}-beta{beta}"
        for number, (rate, beta) in enumerate([("0.01", 1), ("0.01", 4), ("1e+06", 1), ("1e+06", 4)], 1)
    }
    assert {run["experiment"] for run in runs(clone)} == {"digits"}, "whatever register.name is"
    decided = [tags["vaeline.dvc_experiment"] for tags in children if "vaeline.decision" in tags]
    assert decided == [parent["vaeline.sweep_best"]]
    execute("dvc", "exp", "apply", decided[0], cwd=clone)
    assert execute("dvc", "status", cwd=clone).stdout.strip() == "Data and pipelines are up to date."
