import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from vaeline.evaluation.probes import (
    CLASSIFIER_FEATURES,
    CLASSIFIER_SIDE,
    RIDGE,
    Classifier,
    classifier_features,
    frechet_distance,
    knn_predict,
    linear_predict,
    principal_components,
    shrink,
    train_classifier,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] on [0, 1] and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16).float().view(-1, 1, 8, 8), torch.from_numpy(labels)


@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbours_are_those_of_scikit_learn(digits: tuple[Tensor, Tensor], k: int) -> None:
    x, y = digits[0].flatten(1), digits[1]
    found = knn_predict(x[:1000], y[:1000], x[1000:], k)
    expected = KNeighborsClassifier(k, algorithm="brute").fit(x[:1000], y[:1000]).predict(x[1000:])
    assert np.mean(found.numpy() != expected) <= 2 / 797  # equal distances may be ordered otherwise
    assert float((found == y[1000:]).double().mean()) > 0.95


def test_more_neighbours_than_points_are_all_points() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0]])
    assert knn_predict(points, torch.tensor([4, 4, 0]), points).tolist() == [4, 4, 4]


def test_the_linear_probe_is_the_optimum_that_scikit_learn_finds(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0].flatten(1), digits[1]
    found = linear_predict(x[:1000], y[:1000], x[1000:])
    centre, spread = x[:1000].mean(0), x[:1000].std(0)
    scaled = (x - centre) / torch.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=1 / (1000 * RIDGE), max_iter=2000, tol=1e-6).fit(scaled[:1000], y[:1000])
    assert np.mean(found.numpy() != model.predict(scaled[1000:])) <= 4 / 797
    assert float((found == y[1000:]).double().mean()) > 0.9


def test_a_linear_probe_cannot_read_what_is_not_linear() -> None:
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    linear = (linear_predict(x[:2000], y[:2000], x[2000:]) == y[2000:]).double().mean()
    nearest = (knn_predict(x[:2000], y[:2000], x[2000:]) == y[2000:]).double().mean()
    assert float(linear) < 0.6
    assert float(nearest) > 0.95


def test_the_probe_does_not_care_for_the_scale_of_a_feature(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0].flatten(1), digits[1]
    scaled = x * torch.linspace(1e-3, 1e3, 64) + 5
    found = linear_predict(scaled[:1000], y[:1000], scaled[1000:])
    assert float((found == linear_predict(x[:1000], y[:1000], x[1000:])).double().mean()) > 0.99


@pytest.mark.parametrize("images", [1797, 40])  # more, and fewer, than pixels
def test_principal_components_are_those_of_scikit_learn(digits: tuple[Tensor, Tensor], images: int) -> None:
    x = digits[0].flatten(1)[:images].double()
    mean, axes = principal_components(x, 10)
    expected = PCA(10, svd_solver="full").fit(x)
    assert np.allclose(mean, expected.mean_)
    signs = np.sign((axes.T.numpy() * expected.components_).sum(1, keepdims=True))
    assert np.allclose(axes.T.numpy() * signs, expected.components_, atol=1e-8)


def test_principal_components_are_never_more_than_points_or_pixels() -> None:
    assert principal_components(torch.randn(5, 30), 10)[1].shape == (30, 5)
    assert principal_components(torch.randn(30, 4), 10)[1].shape == (4, 4)


def _with_moments(mean: Tensor, covariance: Tensor) -> Tensor:
    """500 points whose sample mean and covariance are exactly these."""
    x = torch.randn(500, len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def test_the_frechet_distance_between_gaussians_is_its_closed_form() -> None:
    zero, one = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    shift, scales = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([2.0, 0.5, 1.0]).double()
    plain = _with_moments(zero, one)
    assert frechet_distance(plain, plain) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(plain, _with_moments(shift, one)) == pytest.approx(float(shift.square().sum()))
    scaled = _with_moments(zero, torch.diag(scales.square()))
    assert frechet_distance(plain, scaled) == pytest.approx(float((scales - 1).square().sum()))


def test_the_frechet_distance_holds_for_covariances_that_do_not_commute() -> None:
    first = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.6], [-0.6, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    cross = torch.linalg.eigvals(first @ second).real.sqrt().sum()
    expected = float(first.trace() + second.trace() - 2 * cross)
    found = frechet_distance(_with_moments(zero, first), _with_moments(zero, second))
    assert found == pytest.approx(expected)
    assert frechet_distance(_with_moments(zero, second), _with_moments(zero, first)) == pytest.approx(expected)


def test_a_feature_that_is_always_zero_does_no_harm_to_the_frechet_distance() -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    dead = torch.cat([x, torch.zeros(100, 1)], dim=1)
    assert frechet_distance(dead, dead + torch.tensor([1.0, 0, 0])) == pytest.approx(1, abs=1e-5)


def test_the_classifier_reads_digits_and_its_features_tell_noise_from_them(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    classifier = train_classifier(x[:1200], y[:1200], seed=1)
    with torch.no_grad():
        accuracy = (classifier(x[1200:]).argmax(1) == y[1200:]).double().mean()
    assert float(accuracy) > 0.8
    real = classifier_features(classifier, x[1200:1500])
    floor = frechet_distance(real, classifier_features(classifier, x[1500:]))
    noise = torch.rand(297, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(real, classifier_features(classifier, noise)) > 5 * floor


def test_the_classifier_is_a_function_of_its_seed_and_leaves_the_global_generator(
    digits: tuple[Tensor, Tensor],
) -> None:
    x, y = digits[0][:300], digits[1][:300]
    before = torch.get_rng_state()
    first, second, other = (classifier_features(train_classifier(x, y, seed), x) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 31), (1, 1, 3), (3, 64, 50)])
def test_the_classifier_takes_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    images = shrink(torch.rand(4, *shape))
    assert images.shape[2:] == (min(shape[1], CLASSIFIER_SIDE), min(shape[2], CLASSIFIER_SIDE))
    classifier = Classifier(images.shape[1:], 3)
    assert classifier_features(classifier, images).shape == (4, CLASSIFIER_FEATURES)


def test_shrinking_averages_and_leaves_small_images_alone() -> None:
    image = torch.rand(1, 1, 56, 56)
    assert torch.allclose(shrink(image)[0, 0, 3, 5], image[0, 0, 6:8, 10:12].mean())
    assert torch.equal(shrink(image[..., :28, :28]), image[..., :28, :28])
