"""A sweep by several workers; the slow test has real ones, each serving a clone of its own, as on two machines."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from pipeline.flows import sweep as flows
from pipeline.services.child_processes import spawn, stop
from pipeline.sweep.process import ExperimentProcess, Result
from pipeline.sweep.study import Request, load_sweep, plan_sweep
from sweep_repository import repository  # noqa: F401
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import ROOT, execute, lines_with

DEPLOYMENT = """
deployments:
- name: trial
  entrypoint: pipeline.flows.sweep.trial_flow
  work_pool: {name: machines}
  pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $WORKER_CLONE }}"}
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
            worker = spawn(command, {**os.environ, "REPOSITORY": str(folder), "WORKER_CLONE": str(folder)}, output)
            stack.callback(stop, worker)
        yield folders


def test_a_worker_stores_its_trials_result_where_the_sweep_reads_it(repository: Path, monkeypatch: pytest.MonkeyPatch):
    here = Workspace(Path(), repository)
    begun = plan_sweep(here, Request(["train.beta=2,3"]), "far")
    begun.begin()
    done, failed = begun.next_trial(), begun.next_trial()
    assert done and failed
    results: dict[str, Result] = {"far-01-beta2": {"metrics": {"test.elbo": -2.0}}}
    results["far-02-beta3"] = {"reason": "diverged"}

    class Process:
        def __init__(self, origin: object, name: str, *_: object) -> None:
            self.wait = lambda: results[name]

    worker = repository.parent / f"{repository.name}-worker"  # another clone, which is at the baseline
    execute("git", "clone", "-q", str(repository), str(worker), cwd=repository)
    (worker / "seed.txt").write_text((repository / "seed.txt").read_text())
    monkeypatch.chdir(worker)
    monkeypatch.setattr(flows, "ExperimentProcess", Process)
    states = [flows.trial_flow.fn("far", begun.storage, trial.number) for trial in (done, failed)]
    ended = [(state.type.value, state.message) for state in states]
    assert ended == [("COMPLETED", "test.elbo -2.0"), ("FAILED", "diverged")]
    assert [trial.value for trial in load_sweep(here, "far").trials()] == [-2.0, None]

    lost = flows.trial_flow.fn("far", "sqlite:////no/study.db", 0)
    assert "storage: found sqlite:////no/study.db, allowed: that of VAELINE_SWEEP_STORAGE" in str(lost.message)
    for number in (-1, 99):
        state = flows.trial_flow.fn("far", begun.storage, number)
        assert state.message == f"number: found {number}, allowed: that of a trial of sweep far"
    for name in ("../x", "-x", "a..b", "a\nb", ""):  # the storage may be anybody's
        with pytest.raises(UserError, match=r"^experiment: found .*, allowed: letters"):
            ExperimentProcess(begun.origin, name, (), {})
    begun.study.set_user_attr("request", {"odd": 1})
    assert "there is no sweep 'far'" in str(flows.trial_flow.fn("far", begun.storage, 0).message)
    begun.study.set_user_attr("request", asdict(begun.request))
    (worker / "seed.txt").write_text("moved")
    assert "began on commit" in str(flows.trial_flow.fn("far", begun.storage, 0).message)


def test_what_the_sweep_deployment_cannot_do_is_refused():
    for wrong in ({"jobs": 0}, {"trials": -1}, {"seed": -1}):
        with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
            flows.sweep_flow.validate_parameters({"assignments": ["train.beta=1"]} | wrong)


@pytest.mark.slow
def test_workers_share_the_trials_and_the_results_are_ranked_where_the_sweep_began(
    repository: Path, clones: list[Path]
):
    done = execute(sys.executable, "-c", SWEEP, cwd=repository)
    assert lines_with(done.stdout, "FAILED failed: far-02-beta3; the others are ranked in reports/sweeps/far")
    by_each = [{line.split()[0] for line in (clone / "trained").read_text().splitlines()} for clone in clones]
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
    (repository / ".vaeline" / "sweeps" / "far" / "study.db").unlink()
    moved = execute(sys.executable, "-c", SWEEP, cwd=repository)
    assert len(lines_with(moved.stderr, "failed: sweep far: began on commit ", "with other params or uncommitted")) == 4
