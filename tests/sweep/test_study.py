import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from pipeline.sweep.process import Result, read_baseline
from pipeline.sweep.study import Request, Search, Sweep, exclusive, load_sweep, open_storage, plan_sweep
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
    sweep = begun(folder, Request(SEARCHES, method, trials, seed, "min:loss"))
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
    assert not [name for name in names if "/" in name or len(name) >= 160]
    odd = begun(tmp_path / "odd", Request(["data.source.path=a.lock,b..c"]))
    for name in [*names[::8], *(trial.user_attrs["name"] for trial in odd.trials())]:
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
    sweep = begun(tmp_path / "killed", Request(SEARCHES, method, 2, metric="min:loss"))
    sweep.study.ask(sweep.space)  # killed before it had a name: leaves nothing
    trial = begun(tmp_path / "killed", sweep.request).next_trial()
    assert trial and trial.user_attrs["name"].startswith("s-01-")
    assert len(sweep.trials()) == 1


def test_bayesian_search_closes_in_on_the_best(tmp_path: Path):
    losses = [values["loss"] for values in search(tmp_path, "bayesian", 40)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10]), "the first ten are drawn at random"


def test_a_storage_that_is_damaged_unknown_or_in_use_is_one_clear_line(tmp_path: Path):
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(UserError, match=r"^the sweep's storage sqlite:///.*study.db cannot be used: .*not a database"):
        open_storage(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(UserError, match=r"^the sweep's storage nosuch://host/db cannot be used: .*nosuch"):
        open_storage("nosuch://user:secret@host/db")
    sweep = begun(tmp_path / "gone")
    with exclusive(sweep), pytest.raises(UserError, match="sweep s: another process is running it"), exclusive(sweep):
        pass
    with (
        pytest.raises(UserError, match=r"^sweep s: its storage sqlite:///.*study.db failed: .*no such table"),
        exclusive(sweep),
    ):
        (tmp_path / "gone" / "study.db").write_bytes(b"")
        sweep.next_trial()


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
    with pytest.raises(UserError, match=r"^--trials: how many a search draws"):
        plan_sweep(here, Request(ranges, "random"))
    with pytest.raises(UserError, match=r"--name: there is no sweep 's' in sqlite:.*study.db; start it"):
        load_sweep(here, "s", "sqlite:////no/.vaeline/sweeps/s/study.db")
    for name, storage in (("../s", ""), ("s", "sqlite:////no/s.db"), ("s", "postgresql://elsewhere/d")):  # of a request
        with pytest.raises(UserError, match=r"(name|storage): found .*, allowed: "):
            load_sweep(here, name, storage)
    assert not (repository / ".vaeline" / "sweeps").exists()


def test_a_baseline_is_the_commit_with_the_changes_read_by_many_at_the_same_moment(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    here = Workspace(Path(), repository)
    (repository / "dvc.lock").write_text("schema: '2.0'\n")  # what DVC writes is no change
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_baseline(here), range(8)))
    assert len({str(baseline.identity) for baseline in found}) == 1
    assert found[0].stash
    (repository / "seed.txt").write_text("a third seed")
    assert read_baseline(here).identity != found[0].identity
    (repository / "seed.txt").write_text("seed")
    assert read_baseline(here).stash == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"^git: detected dubious ownership in repository at '.*'$"):
        read_baseline(here)
