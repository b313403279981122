import math
import sys

import pytest

from pipeline.sweep.search import Known, Method, require_optuna, suggest
from pipeline.sweep.space import Axis, Choices, Range, Values
from vaeline.errors import UserError

AXES: list[Axis] = [
    Range("train.learning_rate", 1e-4, 1e-1, log=True, whole=False),
    Range("model.latent_dim", 2, 64, log=False, whole=True),
    Choices("model.network", ({"kind": "mlp", "hidden": [3]}, {"kind": "gated"})),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    require_optuna()


def loss(values: Values) -> float:
    """Smallest, 0, at a rate of 1e-2 and 20 dimensions of a gated network."""
    rate, width = math.log10(values["train.learning_rate"]) + 2, (values["model.latent_dim"] - 20) / 20
    return float(rate**2 + width**2 + (values["model.network"]["kind"] != "gated"))


def search(method: Method, trials: int, known: list[Known] | None = None, seed: int = 1) -> list[Known]:
    history = list(known or [])
    while len(history) < trials:
        values = suggest(AXES, method, seed, history, maximise=False)
        history.append(Known(values, loss(values)))
    return history


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_values_stay_within_the_space_and_the_same_seed_draws_the_same(method: Method):
    drawn = search(method, 12)
    for trial in drawn:
        assert 1e-4 <= trial.values["train.learning_rate"] <= 1e-1
        assert trial.values["model.latent_dim"] in range(2, 65)
        assert isinstance(trial.values["model.latent_dim"], int)
        assert trial.values["model.network"] in AXES[2].ends
    assert drawn == search(method, 12)
    assert drawn != search(method, 12, seed=2)


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_a_resumed_search_goes_on_as_if_it_had_never_stopped(method: Method):
    whole = search(method, 14)
    assert search(method, 14, known=whole[:12]) == whole
    assert len({str(trial.values) for trial in whole}) == 14


def test_any_seed_draws():
    assert search("random", 2, seed=12345) != search("random", 2, seed=12346)
    assert search("bayesian", 1, seed=2**62)


def test_a_logarithmic_range_is_drawn_evenly_by_its_logarithm():
    rates = [trial.values["train.learning_rate"] for trial in search("random", 60)]
    below = sum(rate < math.sqrt(1e-4 * 1e-1) for rate in rates)
    assert 20 < below < 40, "half of them below the middle, give or take 2.5 standard deviations"


def test_bayesian_search_closes_in_on_the_best_and_random_does_not():
    late = {m: [t.score or 0.0 for t in search(m, 40)[-10:]] for m in ("random", "bayesian")}  # type: ignore[arg-type]
    assert sum(late["bayesian"]) < 0.5 * sum(late["random"])


def test_more_is_better_where_it_is_to_be_maximised():
    history = search("bayesian", 20)
    upside_down = [Known(t.values, None if t.score is None else -t.score) for t in history]
    assert suggest(AXES, "bayesian", 1, history, maximise=False) == suggest(AXES, "bayesian", 1, upside_down, True)


def test_running_and_failed_trials_count_but_need_no_score():
    history = search("bayesian", 12)
    busy = [*history, Known(history[0].values, None), Known(history[1].values, None, failed=True)]
    assert suggest(AXES, "bayesian", 1, busy, maximise=False)["model.latent_dim"] in range(2, 65)


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--search needs optuna: pip install vaeline\[search\]"):
        require_optuna()
