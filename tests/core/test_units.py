import math

import pytest

from vaeline.core.units import bits_per_dimension


def test_a_fair_coin_for_every_pixel_costs_one_bit_each() -> None:
    """Mistake 6: the wrong sign."""
    assert bits_per_dimension(784 * math.log(0.5), 784) == pytest.approx(1.0)


def test_a_uniform_density_on_the_unit_interval_costs_eight_bits() -> None:
    assert bits_per_dimension(0.0, 784, density_on_unit_interval=True) == 8.0


def test_discrete_and_dequantised_uniform_models_cost_the_same() -> None:
    """Mistake 7: bits that leave the dequantisation's volume element out."""
    discrete = bits_per_dimension(784 * math.log(1 / 256), 784)
    assert discrete == pytest.approx(bits_per_dimension(0.0, 784, density_on_unit_interval=True))
