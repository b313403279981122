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


def image_of(model: VAE, z: Tensor) -> Tensor:
    return model.likelihood.mean(model.decode(z)).detach()


def test_interpolation_runs_straight_from_one_reconstruction_to_the_other(model: VAE, x: Tensor) -> None:
    path, means = sampling.interpolate(model, x[:2], 7), model.encode(x[:2]).mean
    assert path.shape == (7, *model.shape)
    assert torch.allclose(path[[0, -1]], sampling.reconstructions(model, x[:2]))
    assert torch.allclose(path[[0, 3, 6]], image_of(model, torch.stack([means[0], means.mean(0), means[1]])))
    assert not path.requires_grad


def test_prior_samples_are_the_decoded_noise_on_the_unit_interval(model: VAE) -> None:
    noise = torch.randn(5, 2, dtype=torch.float64)
    samples = sampling.prior_samples(model, noise)
    assert torch.equal(samples, image_of(model, noise))
    assert ((samples >= 0) & (samples <= 1)).all()
