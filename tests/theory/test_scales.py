"""Readings of the encoder's output; the best σ of a Gaussian likelihood; the residual network as a first stage."""

import math

import pytest
import torch

from small_theory_context import small_context
from vaeline.theory import scales


def test_only_sigma_itself_can_be_no_sigma():
    raw = torch.tensor([-300.0, -1.0, 0.0, 300.0])
    for head, wrong in (("log σ²", 0), ("softplus", 1), ("σ", 2)):
        log_variance, invalid = scales.read_head(raw, head)  # type: ignore[arg-type]
        assert int(invalid.sum()) == wrong, head
        assert torch.isfinite(log_variance).all()
        assert log_variance[2] == pytest.approx(0, abs=1e-6)


def test_the_best_sigma_is_the_root_of_the_mean_squared_error():
    numbers = scales.squared_error(small_context()).numbers
    assert numbers["largest_relative_difference"] < 1e-4
    mse = numbers["root_mean_squared_error_train"] ** 2

    def cost(sigma: float) -> float:
        return mse / (2 * sigma**2) + math.log(sigma)

    best = numbers["root_mean_squared_error_train"]
    assert cost(best) < min(cost(best * 1.01), cost(best * 0.99))


def test_the_squared_error_is_no_claim_on_other_likelihoods():
    claim = scales.squared_error(small_context({"kind": "discretised-logistic"}))
    assert claim.words == ("Does not apply: the likelihood is discretised-logistic.",)
    assert claim.numbers == {}


@pytest.mark.parametrize(("height", "halvings"), [(28, 2), (8, 3), (7, 0), (6, 1)])
def test_the_small_residual_network_fits_the_image(height: int, halvings: int):
    assert len(scales.small((1, height, 28 if height != 8 else 8)).channels) == halvings + 1


def test_latents_times_the_scale_factor_have_variance_one():
    claim = scales.latent_diffusion(small_context())
    numbers = claim.numbers
    assert [picture.name for picture in claim.pictures] == ["latents"]
    assert numbers["here"]["scaled_variance"] == pytest.approx(1, abs=0.1)
    large = numbers["stable_diffusion_size"]
    assert (large["factor"], large["latents"], large["compression"]) == (8, [4, 64, 64], 48)


def test_a_trained_residual_network_is_measured_itself():
    network = {"kind": "residual", "channels": [4, 8], "latent_channels": 1, "blocks": 1}
    here = small_context(network=network, latent_dim=16)
    claim = scales.latent_diffusion(here)
    assert claim.numbers["here"]["encoder_parameters"] == sum(p.numel() for p in here.model.encoder.parameters())
    assert "the trained model" in claim.words[0]
    x = here.observed(here.train.pixels, "oracle")
    posterior = here.model.encode(x)
    variance = (posterior.mean.var() + torch.exp(posterior.log_variance).mean()).item()
    assert claim.numbers["here"]["scale_factor"] == pytest.approx(variance**-0.5, rel=0.02)
