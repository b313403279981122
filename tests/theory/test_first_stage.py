"""The residual network as the first stage of latent diffusion."""

import pytest
import torch

from small_theory_context import small_context
from vaeline.theory import first_stage


@pytest.mark.parametrize(("height", "halvings"), [(28, 2), (8, 3), (7, 0), (6, 1)])
def test_the_small_residual_network_fits_the_image(height: int, halvings: int):
    assert len(first_stage.small((1, height, 28 if height != 8 else 8)).channels) == halvings + 1


def test_latents_times_the_scale_factor_have_variance_one():
    claim = first_stage.latent_diffusion(small_context())
    numbers = claim.numbers
    assert [picture.name for picture in claim.pictures] == ["latents"]
    assert numbers["here"]["scaled_variance"] == pytest.approx(1, abs=0.1)
    large = numbers["stable_diffusion_size"]
    assert (large["factor"], large["latents"], large["compression"]) == (8, [4, 64, 64], 48)


def test_a_trained_residual_network_is_measured_itself():
    network = {"kind": "residual", "channels": [4, 8], "latent_channels": 1, "blocks": 1}
    here = small_context(network=network, latent_dim=16)
    claim = first_stage.latent_diffusion(here)
    assert claim.numbers["here"]["encoder_parameters"] == sum(p.numel() for p in here.model.encoder.parameters())
    assert "the trained model" in claim.words[0]
    x = here.observed(here.train.pixels, "oracle")
    posterior = here.model.encode(x)
    variance = (posterior.mean.var() + torch.exp(posterior.log_variance).mean()).item()
    assert claim.numbers["here"]["scale_factor"] == pytest.approx(variance**-0.5, rel=0.02)
