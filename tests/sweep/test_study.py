import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from pipeline.sweep.storage import open_storage
from pipeline.sweep.study import Request, Result, Search, Sweep, exclusive, load_sweep, plan_sweep
from sweep_repository import GRID, PARAMS, make_sweep
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

SEARCHES = ["train.learning_rate=log:1e-4..1e-1", "model.latent_dim=2..64", "model.network={kind: mlp},{kind: gated}"]


def begun(folder: Path, request: Request = GRID, **baseline: Any) -> Sweep:
    sweep = make_sweep(folder, request, **baseline)
    sweep.begin()
    return sweep


def search(folder: Path, method: Search, trials: int, stop: int = 0, seed: int = 1) -> list[dict[str, Any]]:
    """The values drawn by a search for a smallest loss, 0 at a rate of 1e-2 and 20 dimensions of a gated network."""
    folder.mkdir(exist_ok=True)
    sweep = begun(folder, Request(SEARCHES, method, trials, seed, "loss", maximise=False))
    while trial := sweep.next_trial():
        values = trial.user_attrs["values"]
        rate, width = math.log10(values["train.learning_rate"]) + 2, (values["model.latent_dim"] - 20) / 20
        loss = rate**2 + width**2 + (values["model.network"]["kind"] != "gated")
        sweep.finish(trial.number, {"metrics": {"loss": loss}})
        if stop and trial.number + 1 == stop:
            break
    return [{**trial.user_attrs["values"], "loss": trial.value} for trial in sweep.trials()]


def test_a_grid_has_a_readable_unique_name_for_every_trial_and_runs_in_order(tmp_path: Path):
    sweep = begun(tmp_path)
    names = ["s-01-beta0.5-latent_dim2", "s-02-beta0.5-latent_dim8", "s-03-beta1-latent_dim2", "s-04-beta1-latent_dim8"]
    assert [trial.user_attrs["name"] for trial in sweep.trials()] == names
    started = [trial for _ in range(4) if (trial := sweep.next_trial())]
    assert [trial.user_attrs["name"] for trial in started] == names
    assert started[1].user_attrs["values"] == {"train.beta": 0.5, "model.latent_dim": 8}
    assert sweep.next_trial() is None


def test_any_value_makes_a_name_that_git_and_a_file_system_take(tmp_path: Path):
    network = "model.network={kind: mlp, hidden: [3, 4]},{kind: gated}"
    likelihood = "model.likelihood={kind: gaussian, sigma: 1e-3},{kind: gaussian, sigma: learned}"
    paths = "data.source={kind: npz, path: 'a..b/~^:?*[\\@{.lock'},{kind: npz, path: ../ü.npz}"
    sweep = begun(tmp_path, Request([network, likelihood, paths, "sample.seed=1,2", "train.seed=1,2"]))
    names = [trial.user_attrs["name"] for trial in sweep.trials()]
    assert len(set(names)) == 32
    assert "-sample.seed1-train.seed2" in names[1], "keys that end the same are told apart"
    for name in names:
        assert "/" not in name
        assert len(name) < 160
    for name in names[::8]:
        subprocess.run(["git", "check-ref-format", f"refs/exps/cc/cc/{name}"], check=True)


def test_what_failed_or_was_cut_off_runs_again_and_what_is_done_stays(tmp_path: Path):
    """Mistake 20."""
    sweep = begun(tmp_path)
    first, second, third = (sweep.next_trial() for _ in range(3))
    assert first and second and third
    done = Result(metrics={"test.elbo": -1.123456789012345}, digest="d", seconds=2.5)
    sweep.finish(first.number, done)
    sweep.finish(second.number, {"reason": "diverged"})
    again = begun(tmp_path)  # another process, after the first one was killed
    assert [trial.state for trial in again.trials()] == [TrialState.COMPLETE, *3 * [TrialState.WAITING]]
    assert again.trials()[0].user_attrs["result"] == done
    assert again.trials()[0].value == -1.123456789012345
    missing = [trial.user_attrs for _ in range(3) if (trial := again.next_trial())]
    assert [attributes["name"][:4] for attributes in missing] == ["s-04", "s-02", "s-03"]
    assert missing[1] == {name: second.user_attrs[name] for name in ("name", "values")}, "without the old result"
    assert again.next_trial() is None


def test_a_result_is_stored_once_and_one_without_the_metric_is_a_failure(tmp_path: Path):
    """Mistake 20."""
    sweep = begun(tmp_path)
    first, second = sweep.next_trial(), sweep.next_trial()
    assert first and second
    sweep.finish(first.number, {"metrics": {"test.elbo": -1.0}})
    late = sweep.finish(first.number, {"reason": "its flow run was deleted"})
    assert (late.state, late.value) == (TrialState.COMPLETE, -1.0)
    without = sweep.finish(second.number, {"metrics": {"test.kl": 1.0}})
    assert without.state == TrialState.FAIL
    assert without.user_attrs["result"]["reason"] == "no test.elbo in its metrics"


def test_a_name_stands_for_one_request_on_one_baseline(tmp_path: Path):
    """Mistake 20."""
    begun(tmp_path)
    begun(tmp_path, stash="a" * 40)  # the id of a stash commit depends on the time
    with pytest.raises(UserError, match=r"^sweep s: was asked for other things; choose another --name$"):
        begun(tmp_path, Request(["train.beta=0.5,2"]))
    for changed in ({"commit": "d" * 40}, {"changes": "x"}, {"params": PARAMS | {"sample": {}}}):
        with pytest.raises(UserError, match=r"^sweep s: began on commit cccccccc with other params or uncommitted "):
            begun(tmp_path, **changed)


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_a_search_keeps_to_its_space_and_goes_on_as_if_it_had_never_stopped(method: Search, tmp_path: Path):
    whole = search(tmp_path / "whole", method, 14)
    for values in whole:
        assert 1e-4 <= values["train.learning_rate"] <= 1e-1
        assert values["model.latent_dim"] in range(2, 65)
        assert isinstance(values["model.latent_dim"], int)
        assert values["model.network"] in ({"kind": "mlp"}, {"kind": "gated"})
    assert len({str(values) for values in whole}) == 14
    search(tmp_path / "stopped", method, 14, stop=12)
    assert search(tmp_path / "stopped", method, 14) == whole
    assert search(tmp_path / "other", method, 2, seed=2) != whole[:2]
    assert search(tmp_path / "big", method, 2, seed=2**62), "any seed draws"


def test_bayesian_search_closes_in_on_the_best_and_random_does_not(tmp_path: Path):
    late = {m: [v["loss"] for v in search(tmp_path / m, m, 40)[-10:]] for m in ("random", "bayesian")}  # type: ignore[arg-type]
    assert sum(late["bayesian"]) < 0.5 * sum(late["random"])


def test_a_logarithmic_range_is_drawn_evenly_by_its_logarithm(tmp_path: Path):
    rates = [values["train.learning_rate"] for values in search(tmp_path, "random", 60)]
    below = sum(rate < math.sqrt(1e-4 * 1e-1) for rate in rates)
    assert 20 < below < 40, "half of them below the middle, give or take 2.5 standard deviations"


def test_a_killed_draw_leaves_nothing_and_a_cut_line_of_the_journal_is_left_out(tmp_path: Path):
    request = Request(SEARCHES, "random", 2, metric="loss", maximise=False)
    sweep = begun(tmp_path, request)
    sweep.study.ask(sweep.space)  # killed before it had a name
    with (tmp_path / "journal.log").open("a") as file:
        file.write('{"op_code": 8, "trial')
    again = begun(tmp_path, request)
    trial = again.next_trial()
    assert trial
    assert trial.user_attrs["name"].startswith("s-01-")
    assert len(again.trials()) == 1
    assert all(json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines())


def test_a_damaged_journal_and_an_unknown_database_are_one_clear_line(tmp_path: Path):
    (tmp_path / "journal.log").write_text('{"op_code": \n{"op_code": 0}\n')
    with pytest.raises(UserError, match=r"journal.log: cannot be read \(.*\); remove .* to start anew$"):
        open_storage(str(tmp_path / "journal.log"))
    with pytest.raises(UserError, match=r"^VAELINE_SWEEP_STORAGE: nosuch://host/db: .*nosuch"):
        open_storage("nosuch://user:secret@host/db")


def test_a_database_is_the_state_as_well(tmp_path: Path):
    sweep = make_sweep(tmp_path)
    sweep.storage = f"sqlite:///{tmp_path}/study.db"
    sweep.begin()
    trial = sweep.next_trial()
    assert trial
    sweep.finish(trial.number, {"metrics": {"test.elbo": -1.5}})
    assert [t.value for t in sweep.trials()] == [-1.5, None, None, None]


def test_two_processes_do_not_run_the_same_sweep(tmp_path: Path):
    sweep = make_sweep(tmp_path)
    with exclusive(sweep), pytest.raises(UserError, match="sweep s: another process is running it"), exclusive(sweep):
        pass
    with exclusive(sweep):
        pass


def test_a_plan_is_checked_and_named_after_what_is_asked(repository: Path):
    here = Workspace(Path(), repository)
    name = plan_sweep(here, GRID).name
    assert plan_sweep(here, GRID).name == name
    assert plan_sweep(here, Request(["train.beta=0.5,2"])).name != name
    (repository / "seed.txt").write_text("a third seed")
    assert plan_sweep(here, GRID).name != name
    for wrong in ("a b", "../x", "-x", "x" * 41, "ü"):
        with pytest.raises(UserError, match="--name: found "):
            plan_sweep(here, GRID, wrong)
    ranges = ["train.warmup_epochs=0..9", "train.epochs=5..20"]
    with pytest.raises(UserError, match=r"warmup_epochs \(9\) must not exceed epochs \(5\)"):
        plan_sweep(here, Request(ranges, "random", trials=3))
    for request in (Request(ranges, "random"), Request(GRID.assignments, trials=3)):
        with pytest.raises(UserError, match=r"^--trials: how many a search draws"):
            plan_sweep(here, request)
    for address, line in {
        "": "--name: there is no sweep 's' in ",
        "/no/journal.log": "no /no/journal.log here",
    }.items():
        with pytest.raises(UserError, match=line):
            load_sweep(here, "s", address)
    assert not (repository / ".vaeline" / "sweeps").exists()
