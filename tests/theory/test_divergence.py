"""KL in closed form and by quadrature; the best fits both ways."""

import math

import pytest

from oracles import kl_by_quadrature
from vaeline.theory import divergence


def test_kl_on_the_grid_is_the_closed_form_and_quadrature():
    a, b = divergence.gaussian(1.0, 0.5), divergence.gaussian(0.0, 1.0)
    assert divergence.kl(a, b) == pytest.approx(divergence.kl_of_gaussians(1.0, 0.5, 0.0, 1.0), abs=1e-6)
    assert divergence.kl(a, b) == pytest.approx(kl_by_quadrature(1.0, 2 * math.log(0.5)), abs=1e-6)


def test_each_fit_is_the_best_one_by_its_own_divergence():
    numbers, p = divergence.asymmetry().numbers, divergence.mixture()
    assert numbers["smallest_of_random_pairs"] >= 0
    assert numbers["covering"]["kl_p_q"] < numbers["mode_seeking"]["kl_p_q"]
    assert numbers["mode_seeking"]["kl_q_p"] < numbers["covering"]["kl_q_p"]
    for step in (-0.02, 0.02):
        for name, key in (("covering", "kl_p_q"), ("mode_seeking", "kl_q_p")):
            mean, sd = numbers[name]["mean"], numbers[name]["sd"]
            for q in (divergence.gaussian(mean + step, sd), divergence.gaussian(mean, sd + step)):
                worse = divergence.kl(p, q) if key == "kl_p_q" else divergence.kl(q, p)
                assert worse > numbers[name][key]
