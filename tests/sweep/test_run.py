from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep import run
from pipeline.sweep.process import Result
from pipeline.sweep.study import Request, Sweep
from sweep_repository import make_sweep
from vaeline.io.locks import locked


class FakeJob:
    """A trial that ends when it is polled for the second time; its result is its test ELBO, minus its beta."""

    running: set[str]
    most: int
    stopped: list[str]

    def __init__(self, name: str, result: Result) -> None:
        self.name, self.result, self.polled = name, result, False
        FakeJob.running.add(name)
        FakeJob.most = max(FakeJob.most, len(FakeJob.running))

    def poll(self) -> Result | None:
        if not self.polled:
            self.polled = True
            return None
        FakeJob.running.remove(self.name)
        return self.result

    def stop(self) -> None:
        FakeJob.stopped.append(self.name)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "POLL_S", 0.0)
    FakeJob.running, FakeJob.most, FakeJob.stopped = set(), 0, []


def start(trial: FrozenTrial, place: int) -> FakeJob:
    beta = trial.user_attrs["values"]["train.beta"]
    if beta == 0.25:
        raise OSError("no space left on device")
    result: Result = {"reason": "diverged"} if beta == 3 else {"metrics": {"test.elbo": -beta}}
    return FakeJob(trial.user_attrs["name"], result)


def begun(folder: Path, request: Request) -> Sweep:
    sweep = make_sweep(folder, request)
    sweep.begin()
    return sweep


def test_two_run_at_once_and_the_others_run_whatever_becomes_of_one(tmp_path: Path):
    sweep, lines = begun(tmp_path, Request(["train.beta=0.25,1,2,3"])), list[str]()
    run.run_trials(sweep, start, 2, lines.append)
    assert FakeJob.most == 2
    assert [trial.value for trial in sweep.trials()] == [None, -1.0, -2.0, None]
    assert [sweep.count(state) for state in (TrialState.COMPLETE, TrialState.FAIL)] == [2, 2]
    assert "s-01-beta0.25: failed: no space left on device (0 s)" in lines
    assert "s-02-beta1: done, test.elbo -1 (0 s)" in lines
    assert "s-04-beta3: failed: diverged (0 s)" in lines
    run.run_trials(begun(tmp_path, sweep.request), start, 2, lines.append)
    assert lines.count("s-02-beta1: running") == 1, "what is done does not run again"
    assert lines.count("s-04-beta3: running") == 2, "what failed does"


def test_what_ends_it_early_stops_the_running_trials_and_they_run_again(tmp_path: Path):
    sweep = begun(tmp_path, Request(["train.beta=1,2,4"]))

    def interrupted(line: str) -> None:
        if "s-02-beta2: running" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run_trials(sweep, start, 2, interrupted)
    assert sorted(FakeJob.stopped) == ["s-01-beta1", "s-02-beta2"]
    again = begun(tmp_path, sweep.request)
    run.run_trials(again, start, 1, lambda _: None)
    assert [trial.value for trial in again.trials()] == [-1.0, -2.0, -4.0]


def test_drawn_values_that_contradict_each_other_are_a_failed_trial(tmp_path: Path):
    request = Request(["train.warmup_epochs=9..5000", "train.epochs=2..3", "train.beta=1"], "random", trials=2)
    run.run_trials(sweep := begun(tmp_path, request), start, 1, lambda _: None)
    assert len(sweep.trials()) == 2
    assert all("must not exceed epochs" in trial.user_attrs["result"]["reason"] for trial in sweep.trials())


def test_only_the_best_is_completed_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Mistake 20."""
    sweep, completed, lines = begun(tmp_path, Request(["train.beta=2,1,4"])), list[str](), list[str]()
    outcome: list[Result] = [{"reason": "the gate is away"}, {}]

    class Complete:
        def __init__(self, origin: object, name: str, changes: list[str], environment: object) -> None:
            completed.append(name)
            self.wait = lambda: outcome.pop(0)

    monkeypatch.setattr(run, "ExperimentProcess", Complete)
    run.complete_best(sweep, lines.append)
    assert not completed, "nothing has a score yet"
    run.run_trials(sweep, start, 1, lambda _: None)
    assert [run.complete_best(sweep, lines.append) for _ in range(3)] == [False, True, True]
    assert completed == ["s-02-beta1", "s-02-beta1"], "again after a failure, then not"
    assert "not registered: the gate is away; try again with: vaeline sweep --name s" in lines


def test_data_are_prepared_once_for_each_different_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepared: list[Any] = []

    class Prepare:
        def __init__(self, origin: object, name: str, changes: list[str], *rest: object, collect: bool) -> None:
            prepared.append(changes[1])
            assert (rest[1], collect) == (("prepare",), False)
            self.wait = lambda: {"reason": "the trials meet it again"}

    monkeypatch.setattr(run, "ExperimentProcess", Prepare)
    monkeypatch.setattr(run, "run_trials", lambda *_: None)
    run.run_trials_here(begun(tmp_path, Request(["data.validation=100,200", "train.beta=1,2"])), 1, print)
    assert prepared == ["++data.validation=100", "++data.validation=200"]


def test_a_clone_at_work_is_not_removed_and_what_a_killed_process_left_is(tmp_path: Path):
    sweep = make_sweep(tmp_path)
    for folder in ("work/working", "work/left", "locks"):
        (sweep.folder / folder).mkdir(parents=True)
    with locked(sweep.folder / "locks" / "working"):
        sweep.origin.remove_clones()
    assert [path.name for path in (sweep.folder / "work").glob("*/")] == ["working"]
