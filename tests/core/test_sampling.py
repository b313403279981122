import math

import pytest
import torch
from torch import Tensor

from oracles import probabilistic_pca
from vaeline.core import sampling
from vaeline.core.model import VAE


@pytest.fixture
def model() -> VAE:
    """Linear: its decoded images are straight functions of z."""
    return probabilistic_pca().vae()


@pytest.fixture
def x() -> Tensor:
    return probabilistic_pca().sample(3, torch.Generator().manual_seed(1))


def mean_of(model: VAE, x: Tensor) -> Tensor:
    return model.encode(x).mean.detach()


def image_of(model: VAE, z: Tensor) -> Tensor:
    return model.likelihood.mean(model.decode(z)).detach()


def test_interpolation_runs_from_one_reconstruction_to_the_other(model: VAE, x: Tensor) -> None:
    ends = sampling.reconstructions(model, x[:2])
    for spherical in (False, True):
        path = sampling.interpolate(model, x[:2], 7, spherical=spherical)
        assert path.shape == (7, *model.shape)
        assert torch.allclose(path[[0, -1]], ends)
        assert not path.requires_grad


def test_linear_interpolation_passes_the_midpoint(model: VAE, x: Tensor) -> None:
    path = sampling.interpolate(model, x[:2], 3)
    assert torch.allclose(path[1], image_of(model, mean_of(model, x[:2]).mean(0, keepdim=True))[0])


def test_spherical_interpolation_passes_the_middle_of_the_arc(model: VAE, x: Tensor) -> None:
    path = sampling.interpolate(model, x[:2], 3, spherical=True)
    middle = sampling.slerp(*mean_of(model, x[:2]), 0.5)
    assert torch.allclose(path[1], image_of(model, middle.unsqueeze(0))[0])
    assert not torch.allclose(path[1], sampling.interpolate(model, x[:2], 3)[1])


def test_spherical_interpolation_keeps_the_norm_and_turns_evenly() -> None:
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    for fraction in (0.0, 0.25, 0.5, 1.0):
        z = sampling.slerp(start, end, fraction)
        angle = fraction * math.pi / 2
        assert z.tolist() == pytest.approx([3 * math.cos(angle), 3 * math.sin(angle)], abs=1e-6)


def test_spherical_interpolation_of_parallel_or_opposite_vectors_is_straight() -> None:
    start = torch.tensor([1.0, 2.0])
    for end in (start, 2 * start, -start):
        assert torch.allclose(sampling.slerp(start, end, 0.25), torch.lerp(start, end, 0.25), atol=1e-6)


def test_mixtures_with_all_weight_on_one_image_are_its_reconstruction(model: VAE, x: Tensor) -> None:
    assert torch.allclose(sampling.mixtures(model, x, torch.eye(3)), sampling.reconstructions(model, x))
    third = sampling.mixtures(model, x, torch.full((1, 3), 1 / 3, dtype=torch.float64))
    assert torch.allclose(third, image_of(model, mean_of(model, x).mean(0, keepdim=True)))


@pytest.mark.parametrize("side", [1, 2, 5])
def test_barycentric_weights_cover_the_triangle_once(side: int) -> None:
    weights = sampling.barycentric_weights(side)
    assert weights.shape == (side * (side + 1) // 2, 3)
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)))
    assert (weights >= 0).all()
    assert len(weights.unique(dim=0)) == len(weights)
    corners = weights[[0, -side, -1]] if side > 1 else torch.eye(3)
    assert torch.equal(corners, torch.eye(3))


def test_traversals_change_one_latent_dimension_at_a_time(model: VAE, x: Tensor) -> None:
    values = torch.tensor([-2.0, 0.0, 3.0])
    pictures = sampling.traversals(model, x[:1], torch.tensor([1, 0]), values)
    assert pictures.shape == (6, *model.shape)
    for i, (dimension, value) in enumerate((d, v) for d in (1, 0) for v in values.tolist()):
        z = mean_of(model, x[:1])
        z[0, dimension] = value
        assert torch.allclose(pictures[i], image_of(model, z)[0])


def test_prior_samples_are_the_decoded_noise_on_the_unit_interval(model: VAE) -> None:
    noise = torch.randn(5, 2, dtype=torch.float64)
    samples = sampling.prior_samples(model, noise)
    assert torch.equal(samples, image_of(model, noise))
    assert ((samples >= 0) & (samples <= 1)).all()
