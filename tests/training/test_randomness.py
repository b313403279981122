import itertools

import pytest
import torch

from small_training import CPU
from vaeline.training.randomness import Noise, mix, permutation


def noise(seed: int, number: int = 0) -> Noise:
    made = Noise(seed, CPU)
    made.restart("step", number)
    return made


def test_different_arguments_give_different_seeds():
    seeds = [mix(*key) for key in itertools.product((0, 1, 2**62), ("step", "validation"), range(50))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_epochs_order_holds_every_image_once_and_depends_on_seed_and_epoch_alone():
    order = permutation(1, 2, 1000)
    torch.manual_seed(5)
    assert torch.equal(order, permutation(1, 2, 1000))
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, permutation(1, 3, 1000))
    assert not torch.equal(order, permutation(2, 2, 1000))


def test_noise_depends_on_seed_stream_and_number_not_on_what_was_drawn_before():
    one, other, shape = noise(1, 9), noise(1, 3), torch.Size([3, 1, 5, 5])
    one.normal(7)
    one.restart("step", 3)
    assert torch.equal(one.normal(2, 5), other.normal(2, 5))
    assert torch.equal(one.uniform(shape), other.uniform(shape))
    assert not torch.equal(noise(1, 3).normal(2, 5), noise(1, 4).normal(2, 5))


def test_uniform_noise_has_the_uniform_distribution_and_neighbours_are_uncorrelated():
    draws = noise(3).uniform(torch.Size([999_999])).double()
    assert 0 < draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert draws.mean().item() == pytest.approx(1 / 2, abs=4 / (12e6) ** 0.5)
    expected = len(draws) / 256
    chi_squared = ((torch.histc(draws, bins=256, min=0, max=1) - expected) ** 2 / expected).sum().item()
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5
    for lag in (1, 2, 3, 4, 8):
        correlation = ((draws[:-lag] - 0.5) * (draws[lag:] - 0.5)).mean().item() * 12
        assert abs(correlation) < 5 / len(draws) ** 0.5
