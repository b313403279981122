import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vaeline.evaluation.probes import (
    BINS,
    CLASSIFIER_FEATURES,
    RIDGE,
    classifier_features,
    dci,
    discretise,
    frechet_distance,
    knn_predict,
    linear_predict,
    mutual_information_gap,
    principal_components,
    shrink,
    train_classifier,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] on [0, 1] and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16).float().view(-1, 1, 8, 8), torch.from_numpy(labels)


def test_the_nearest_neighbour_decides_and_k_is_at_most_the_points_count() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0]])
    assert knn_predict(points, torch.tensor([4, 4, 0]), points).tolist() == [4, 4, 4]
    assert knn_predict(points, torch.tensor([4, 4, 0]), points, 1).tolist() == [4, 4, 0]


def test_the_linear_probe_is_the_optimum_that_scikit_learn_finds_at_any_scale(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0].flatten(1), digits[1]
    found = linear_predict(x[:1000], y[:1000], x[1000:])
    centre, spread = x[:1000].mean(0), x[:1000].std(0)
    scaled = (x - centre) / torch.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=1 / (1000 * RIDGE), max_iter=2000, tol=1e-6).fit(scaled[:1000], y[:1000])
    assert np.mean(found.numpy() != model.predict(scaled[1000:])) <= 4 / 797
    rescaled = x * torch.linspace(1e-3, 1e3, 64) + 5
    again = linear_predict(rescaled[:1000], y[:1000], rescaled[1000:])
    assert float((again == found).double().mean()) > 0.99


def test_principal_components_are_orthonormal_widest_first_and_never_more_than_points_or_pixels(digits) -> None:
    x = digits[0].flatten(1).double()
    mean, axes = principal_components(x, 10)
    assert torch.allclose(mean, x.mean(0))
    assert torch.allclose(axes.T @ axes, torch.eye(10).double(), atol=1e-8)
    assert torch.allclose(((x - mean) @ axes).var(0), torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)[:10])
    assert principal_components(x[:5], 10)[1].shape == (64, 5)
    assert principal_components(x[:, :4], 10)[1].shape == (4, 4)


@pytest.mark.parametrize(
    ("shift", "first", "second"),
    [
        ((1.0, -2.0), ((1.0, 0.0), (0.0, 1.0)), ((4.0, 0.0), (0.0, 0.25))),
        ((0.0, 0.0), ((2.0, 0.8), (0.8, 1.0)), ((1.0, -0.6), (-0.6, 3.0))),  # they do not commute
    ],
)
def test_the_frechet_distance_between_gaussians_is_its_closed_form(shift, first, second) -> None:
    mean, covariances = torch.tensor(shift).double(), [torch.tensor(c).double() for c in (first, second)]

    def with_moments(mean: Tensor, covariance: Tensor) -> Tensor:
        """500 points whose sample mean and covariance are exactly these."""
        x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = x - x.mean(0)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
        return (torch.linalg.cholesky(covariance) @ white).T + mean

    cross = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    expected = float(mean.square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * cross)
    x, y = with_moments(0 * mean, covariances[0]), with_moments(mean, covariances[1])
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(y, x) == pytest.approx(expected)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    dead = torch.cat([x, torch.zeros(500, 1)], dim=1)  # a feature that is always zero
    assert frechet_distance(dead, dead + torch.tensor([1.0, 0, 0])) == pytest.approx(1, abs=1e-5)


def test_the_classifier_takes_any_shape_is_a_function_of_its_seed_and_leaves_the_global_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaeline.evaluation.probes.CLASSIFIER_STEPS", 5)
    labels = torch.tensor([0, 1, 2, 0])
    for shape, smaller in (((1, 8, 8), (8, 8)), ((3, 5, 31), (5, 28)), ((1, 1, 3), (1, 3)), ((3, 64, 50), (28, 28))):
        images = torch.rand(4, *shape)
        x = shrink(images)
        assert x.shape[2:] == smaller
        before = torch.get_rng_state()
        first, second, other = (classifier_features(train_classifier(x, labels, seed), [x]) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert first.shape == (4, CLASSIFIER_FEATURES)
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
    assert torch.allclose(x[0, 0, 0, 0], images[0, 0, :3, :2].mean())


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


def test_few_values_stay_and_many_become_bins_of_equal_counts() -> None:
    assert discretise(np.array([7.0, 0.5, 7.0])).tolist() == [1, 0, 1]
    counts = np.bincount(discretise(np.random.default_rng(0).lognormal(size=2000)))
    assert counts.tolist() == [2000 // BINS] * BINS


def test_the_gap_is_one_for_the_factors_and_none_for_a_code_that_holds_each_twice(factors: np.ndarray) -> None:
    codes = np.exp(factors[:, ::-1]) * [1, -5, 100]  # in another order, at another scale
    assert mutual_information_gap(codes, factors) == pytest.approx(1, abs=0.05)
    assert mutual_information_gap(factors[:, 1:2], factors[:, 1:2]) == pytest.approx(1)
    assert mutual_information_gap(np.hstack([factors, factors]), factors) == pytest.approx(0, abs=1e-9)
    assert mutual_information_gap(_rotated(factors), factors) < 0.4
    assert mutual_information_gap(_random(factors), factors) < 0.01
    never_varies = np.ones((len(factors), 1))  # left out
    assert mutual_information_gap(factors, np.hstack([factors, never_varies])) == mutual_information_gap(
        factors, factors
    )
    assert mutual_information_gap(factors, never_varies) == 0.0


def test_dci_of_the_factors_of_their_rotation_of_noise_and_of_factors_held_twice(factors: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(size=factors.shape)
    twice = np.hstack([factors + 0.05 * noise, factors - 0.05 * noise])
    same, rotated, random, doubled = (
        dci(codes, factors, seed=1) for codes in (factors[:, ::-1], _rotated(factors), _random(factors), twice)
    )
    assert min(same.values()) > 0.95
    assert max(rotated["disentanglement"], rotated["completeness"]) < 0.6
    assert rotated["informativeness"] > 0.85
    assert max(random["disentanglement"], random["completeness"]) < 0.1
    assert random["informativeness"] < 0.2
    assert doubled["completeness"] + 0.1 < doubled["disentanglement"] > 0.8
