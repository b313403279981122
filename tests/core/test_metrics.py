import math

import pytest
import torch

from oracles import probabilistic_pca
from vaeline.core.metrics import active_units, mean_squared_error, most_informative, psnr


def test_active_units_count_the_dimensions_whose_means_move() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5000, 4, generator=generator) * torch.tensor([1.0, 0.2, 0.05, 0.0])
    count, variances = active_units(means, 0.01)
    assert count == 2
    assert variances.tolist() == pytest.approx([1.0, 0.04, 0.0025, 0.0], rel=0.1)


def test_active_units_of_probabilistic_pca_have_the_variances_of_its_posterior_means() -> None:
    oracle = probabilistic_pca(scales=(1.5, 0.8))
    x = oracle.sample(40_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, variances = active_units(oracle.vae().encode(x).mean, 0.01)
    truth = [s * s / (s * s + oracle.sigma**2) for s in (1.5, 0.8)]  # 1 - E[posterior variance]
    assert variances.tolist() == pytest.approx(truth, rel=0.03)


def test_active_units_of_far_away_means_keep_their_digits() -> None:
    means = 1e4 + 0.1 * torch.randn(5001, 1, generator=torch.Generator().manual_seed(0))
    assert float(active_units(means, 0.01)[1]) == pytest.approx(float(means.double().var()), rel=1e-9)


def test_dimensions_are_ordered_by_mean_kl() -> None:
    assert most_informative(torch.tensor([[0.0, 3.0, 1.0], [0.2, 1.0, 1.5]])).tolist() == [1, 2, 0]


def test_mean_squared_error_and_psnr_of_a_known_error() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    offsets = torch.tensor([0.1, 0.01], dtype=torch.float64).view(2, 1, 1, 1)
    error = mean_squared_error(images, images + offsets)
    assert error.tolist() == pytest.approx([1e-2, 1e-4])
    assert psnr(error).tolist() == pytest.approx([20.0, 40.0])
    assert float(psnr(torch.tensor(0.0))) == math.inf
