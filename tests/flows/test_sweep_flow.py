"""A sweep through real Prefect workers, each serving a clone of its own, as on two machines."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.services.child_processes import spawn, stop
from workspaces import ROOT, execute, lines_with

pytestmark = pytest.mark.slow
DEPLOYMENT = """
deployments:
- name: trial
  entrypoint: pipeline.flows.sweep.trial_flow
  work_pool: {name: machines}
  pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $REPOSITORY }}"}
"""
SWEEP = """
from pipeline.services.environment import prepare_environment
prepare_environment()
from pipeline.flows.sweep import sweep_flow
state = sweep_flow(["train.beta=2,3,4,5"], jobs=2, name="far", return_state=True)
print(state.type.value, state.message)
"""


@pytest.fixture
def clones(repository: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two clones of the committed repository, a worker in each that takes one trial at a time."""
    execute("git", "checkout", "-q", "seed.txt", cwd=repository)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{repository}/.vaeline/mlflow.db")
    (repository / ".vaeline").mkdir()
    (repository / ".vaeline" / "deployment.yaml").write_text(DEPLOYMENT)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    execute(*prefect, "work-pool", "create", "machines", "--type", "process", "--overwrite", cwd=repository)
    execute(*prefect, "deploy", "--prefect-file", ".vaeline/deployment.yaml", "--all", cwd=repository)
    folders = [repository / ".vaeline" / name for name in ("one", "two")]
    with ExitStack() as stack:
        for folder in folders:
            execute("git", "clone", "-q", str(repository), str(folder), cwd=repository)
            output = stack.enter_context(folder.with_suffix(".log").open("w"))
            command = [*prefect, "worker", "start", "--pool", "machines", "--limit", "1", "--name", folder.name]
            worker = spawn(command, {**os.environ, "REPOSITORY": str(folder)}, output)
            stack.callback(stop, worker)
        yield folders


def sweep(repository: Path) -> subprocess.CompletedProcess[str]:
    return execute(sys.executable, "-c", SWEEP, cwd=repository)


def betas(folder: Path) -> set[str]:
    return {line.split()[0] for line in (folder / "trained").read_text().splitlines()}


def test_workers_share_the_trials_and_the_results_are_ranked_where_the_sweep_began(
    repository: Path, clones: list[Path]
):
    done = sweep(repository)
    assert lines_with(done.stdout, "FAILED failed: far-02-beta3; the others are ranked in reports/sweeps/far")
    by_each = [betas(clone) for clone in clones]
    assert all(by_each), "both took part"
    assert by_each[0] | by_each[1] == {"2", "3", "4", "5"}
    assert not by_each[0] & by_each[1]
    ranking = (repository / "reports" / "sweeps" / "far" / "ranking.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in ranking[1:4]] == [
        ["1", "far-01-beta2", "2"],
        ["2", "far-03-beta4", "4"],
        ["3", "far-04-beta5", "5"],
    ]
    assert "failed,training diverged at step 2" in ranking[4]
    listed = [execute("dvc", "exp", "list", "--name-only", cwd=clone).stdout.split() for clone in clones]
    assert {*listed[0], *listed[1]} == {"far-01-beta2", "far-03-beta4", "far-04-beta5"}

    (repository / "params.yaml").write_text((repository / "params.yaml").read_text().replace("rows: 6", "rows: 7"))
    (repository / ".vaeline" / "sweeps" / "far" / "state.json").unlink()
    moved = sweep(repository)
    told = lines_with(moved.stderr, "failed: this worker's clone, at ", "has another commit, params or changes")
    assert len(told) == 4
