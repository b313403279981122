import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.sweep.run import only_one
from pipeline.sweep.state import Baseline, Request, Sweep, folder
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT

PARAMS: Any = read_yaml(ROOT / "params.yaml")
GRID = Request(["train.beta=0.5,1", "model.latent_dim=2,8"])


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def plan(request: Request = GRID, name: str = "", **baseline: Any) -> Sweep:
    return Sweep.plan(
        name, request, Baseline(**{"commit": "c" * 40, "stash": "", "content": "", "params": PARAMS, **baseline})
    )


def test_a_grid_has_a_readable_unique_name_for_every_trial():
    assert [trial.name for trial in plan(name="first").trials] == [
        "first-01-beta0.5-latent_dim2",
        "first-02-beta0.5-latent_dim8",
        "first-03-beta1-latent_dim2",
        "first-04-beta1-latent_dim8",
    ]


def test_any_value_makes_a_name_that_git_and_a_file_system_take():
    network = "model.network={kind: mlp, hidden: [3, 4]},{kind: gated}"
    likelihood = "model.likelihood={kind: gaussian, sigma: 1e-3},{kind: gaussian, sigma: learned}"
    paths = "data.source={kind: npz, path: 'a..b/~^:?*[\\@{.lock'},{kind: npz, path: ../ü.npz}"
    numbered = ["sample.seed=1,2", "train.seed=1,2"]
    names = [trial.name for trial in plan(Request([network, likelihood, paths, *numbered])).trials]
    assert len(set(names)) == 32
    assert "-sample.seed1-train.seed2" in names[1], "keys that end the same are told apart"
    for name in names:
        assert "/" not in name
        assert len(name) < 160
        subprocess.run(["git", "check-ref-format", f"refs/exps/cc/cc/{name}"], check=True)


def test_the_same_request_on_the_same_baseline_has_the_same_name():
    name = plan().name
    assert plan(stash="a" * 40).name == name, "a stash commit's name tells the time too"
    others = [plan(Request(["train.beta=0.5,2"])), plan(commit="d" * 40), plan(content="x")]
    others.append(plan(params={**PARAMS, "sample": {**PARAMS["sample"], "rows": 2}}))
    assert len({name, *(other.name for other in others)}) == 5


@pytest.mark.parametrize("name", ["a b", "../x", "-x", "x" * 41, "ü"])
def test_a_name_that_is_none_is_refused(name: str):
    with pytest.raises(UserError, match="--name: found "):
        plan(name=name)


def test_what_failed_or_was_cut_off_waits_again_and_what_is_done_stays():
    sweep = plan(name="resumed")
    first, second, third, _ = sweep.trials
    sweep.settle(replace(first, status="done", metrics={"test.elbo": -1.5}, digest="d", seconds=2.5))
    sweep.settle(replace(second, status="failed", reason="diverged"))
    assert sweep.next_trial([third.number]) == sweep.trials[3]
    again = Sweep.load("resumed")
    assert again is not None
    assert again.trials == [sweep.trials[0], *plan(name="resumed").trials[1:]]
    assert (again.request, again.baseline, again.name) == (sweep.request, sweep.baseline, sweep.name)
    assert again.next_trial([]) == second
    assert again.next_trial([1, 2, 3]) is None


def test_a_search_draws_until_it_has_enough_and_draws_the_same_after_a_stop():
    request = Request(["train.beta=log:0.1..10", "model.latent_dim=2..8"], "random", trials=3)

    def draw(sweep: Sweep, numbers: int) -> None:
        for _ in range(numbers):
            trial = sweep.next_trial([])
            assert trial is not None
            sweep.settle(replace(trial, status="done", metrics={"test.elbo": -trial.values["train.beta"]}))

    whole, stopped = plan(request, "whole"), plan(request, "stopped")
    draw(whole, 3)
    assert whole.next_trial([]) is None
    draw(stopped, 1)
    resumed = Sweep.load("stopped")
    assert resumed is not None
    draw(resumed, 2)
    assert [t.values for t in resumed.trials] == [t.values for t in whole.trials]


def test_drawn_values_that_contradict_each_other_are_a_failed_trial_and_corners_are_checked_first():
    with pytest.raises(UserError, match=r"warmup_epochs \(9\) must not exceed epochs \(5\)"):
        plan(Request(["train.warmup_epochs=0..9", "train.epochs=5..20"], "random", trials=3))


def test_a_torn_state_is_one_clear_line(repository: Path):
    (folder("torn")).mkdir(parents=True)
    (folder("torn") / "state.json").write_text('{"name": "torn", "trials": [')
    with pytest.raises(UserError, match=r"state.json: cannot be read .* remove .*torn to start anew"):
        Sweep.load("torn")
    assert Sweep.load("nothing") is None


def test_two_processes_do_not_run_the_same_sweep():
    left = folder("busy") / "work" / "busy-01"
    with only_one("busy"):
        left.mkdir(parents=True)
        with pytest.raises(UserError, match="sweep busy: another process is running it"), only_one("busy"):
            pass
        assert left.exists()
    with only_one("busy"):
        assert not left.exists(), "what a killed one left is cleared"
