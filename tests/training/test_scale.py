import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaeline.core.likelihoods import Gaussian
from vaeline.core.model import VAE
from vaeline.core.priors import StandardNormal
from vaeline.training.scale import scale_factor
from vaeline.training.splits import Splits


class Encoder(nn.Module):
    """q(z|x) = N(5 + 3 x_i, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        raw = 20 * torch.atanh(torch.full((len(x), 2), 4.0).log() / 20)
        return torch.cat([5 + 3 * x.flatten(1), raw], dim=1)


def test_the_scale_factor_gives_the_latents_variance_one() -> None:
    """Mistake 18: statistics of another split; the validation split here has none of the white pixels."""
    checkers = np.repeat(np.arange(4000) % 2 * 255, 2).astype(np.uint8).reshape(4000, 1, 1, 2)  # two pixels an image
    splits, cpu = Splits(checkers, np.zeros_like(checkers[:200]), "none"), torch.device("cpu")
    model = VAE(Encoder(), nn.Identity(), Gaussian(0.1), StandardNormal(), shape=(1, 1, 2), latent_dim=2)
    factor = scale_factor(model, splits, 1, cpu)
    variance = 4 + 9 * (255 / 256) ** 2 / 4  # of the samples: that of the means, 9/4, is too small
    assert factor**-2 == pytest.approx(variance, rel=0.05)
    assert factor == scale_factor(model, splits, 1, cpu)
