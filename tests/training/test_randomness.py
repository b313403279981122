import itertools

import pytest
import torch

from small_training import CPU
from vaeline.training.randomness import Noise, mix, permutation


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
    noise, other = Noise(1, CPU), Noise(1, CPU)
    noise.normal(7)
    noise.restart("step", 3)
    other.restart("step", 3)
    assert torch.equal(noise.normal(2, 5), other.normal(2, 5))
    assert torch.equal(noise.uniform(torch.Size([3, 1, 5, 5])), other.uniform(torch.Size([3, 1, 5, 5])))
    other.restart("step", 4)
    assert not torch.equal(noise.normal(2, 5), other.normal(2, 5))


def test_uniform_noise_has_the_uniform_distribution():
    noise = Noise(3, CPU)
    noise.restart("step", 0)
    draws = noise.uniform(torch.Size([999_999])).double()
    assert 0 < draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert draws.mean().item() == pytest.approx(1 / 2, abs=4 / (12e6) ** 0.5)
    counts = torch.histc(draws, bins=256, min=0, max=1)
    expected = len(draws) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5


def test_neighbouring_uniform_draws_are_uncorrelated():
    noise = Noise(4, CPU)
    noise.restart("step", 0)
    draws = noise.uniform(torch.Size([400_000])).double() - 0.5
    for lag in (1, 2, 3, 4, 8):
        correlation = (draws[:-lag] * draws[lag:]).mean().item() * 12
        assert abs(correlation) < 5 / 400_000**0.5
