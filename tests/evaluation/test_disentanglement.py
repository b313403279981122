import math

import numpy as np
import pytest

from vaeline.evaluation.disentanglement import (
    BINS,
    dci,
    discretise,
    mutual_information,
    mutual_information_gap,
)


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    """Three factors: one of three values, two continuous."""
    unit = np.random.default_rng(0).random((4000, 3))
    unit[:, 0] = np.floor(3 * unit[:, 0])
    return unit


def _rotated(factors: np.ndarray) -> np.ndarray:
    reflection = np.eye(3) - 2 / 3  # orthogonal, and every entry is far from 0
    return (factors - factors.mean(0)) / factors.std(0) @ reflection


def _random(factors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(len(factors), 5))


def test_mutual_information_is_that_of_the_table_of_counts() -> None:
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert mutual_information(a, b) == pytest.approx(0)
    assert mutual_information(a, a) == pytest.approx(math.log(2))
    assert mutual_information(np.array([0, 0, 0, 1]), a) == pytest.approx(0.75 * math.log(4 / 3))


def test_few_values_stay_and_many_become_bins_of_equal_counts() -> None:
    assert discretise(np.array([7.0, 0.5, 7.0])).tolist() == [1, 0, 1]
    counts = np.bincount(discretise(np.random.default_rng(0).lognormal(size=2000)))
    assert counts.tolist() == [2000 // BINS] * BINS


def test_a_code_that_is_the_factors_has_a_gap_of_one(factors: np.ndarray) -> None:
    codes = np.exp(factors[:, ::-1]) * [1, -5, 100]  # in another order, at another scale
    assert mutual_information_gap(codes, factors) == pytest.approx(1, abs=0.05)


def test_a_code_that_holds_each_factor_twice_has_no_gap(factors: np.ndarray) -> None:
    assert mutual_information_gap(np.hstack([factors, factors]), factors) == pytest.approx(0, abs=1e-9)


def test_rotated_and_random_codes_have_a_small_gap(factors: np.ndarray) -> None:
    assert mutual_information_gap(_rotated(factors), factors) < 0.4
    assert mutual_information_gap(_random(factors), factors) < 0.01


def test_one_code_for_one_factor_has_its_gap_to_nothing(factors: np.ndarray) -> None:
    assert mutual_information_gap(factors[:, 1:2], factors[:, 1:2]) == pytest.approx(1)


def test_factors_that_never_vary_are_left_out_of_the_gap(factors: np.ndarray) -> None:
    constant = np.hstack([factors, np.ones((len(factors), 1))])
    assert mutual_information_gap(factors, constant) == mutual_information_gap(factors, factors)
    assert mutual_information_gap(factors, np.ones((len(factors), 1))) == 0.0


def test_a_code_that_is_the_factors_is_disentangled_complete_and_informative(factors: np.ndarray) -> None:
    found = dci(factors[:, ::-1], factors, seed=1)
    assert min(found.values()) > 0.95


def test_rotating_the_code_entangles_it_and_keeps_what_it_knows(factors: np.ndarray) -> None:
    found = dci(_rotated(factors), factors, seed=1)
    assert max(found["disentanglement"], found["completeness"]) < 0.6
    assert found["informativeness"] > 0.85


def test_a_random_code_informs_of_nothing(factors: np.ndarray) -> None:
    found = dci(_random(factors), factors, seed=1)
    assert max(found["disentanglement"], found["completeness"]) < 0.1
    assert found["informativeness"] < 0.2


def test_a_factor_held_twice_is_disentangled_but_not_complete(factors: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(size=factors.shape)
    codes = np.hstack([factors + 0.05 * noise, factors - 0.05 * noise])
    found = dci(codes, factors, seed=1)
    assert found["disentanglement"] > 0.8
    assert found["completeness"] < found["disentanglement"] - 0.1


def test_dci_is_a_function_of_its_seed(factors: np.ndarray) -> None:
    assert dci(_rotated(factors)[:500], factors[:500], 2**40) == dci(_rotated(factors)[:500], factors[:500], 2**40)
