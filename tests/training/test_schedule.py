import pytest

from vaeline.training.schedule import kl_weight, one_cycle


def test_the_learning_rate_rises_once_to_its_peak_and_falls_once_to_nearly_nothing():
    rates = [one_cycle(step, 1000, 0.002) for step in range(1000)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.002, rel=1e-2)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < rates[0] < 0.1 * 0.002
    assert 200 < top < 300


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_short_cycle_stays_within_its_peak(steps: int):
    assert all(0 < one_cycle(step, steps, 1.0) <= 1.0 for step in range(steps))


def test_the_kl_weight_grows_linearly_to_beta_and_stays():
    assert [kl_weight(step, 4, 2.0) for step in range(7)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_without_warm_up_the_kl_weighs_beta_from_the_first_step():
    assert kl_weight(0, 0, 3.0) == 3.0
