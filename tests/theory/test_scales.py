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


def test_the_best_sigma_is_the_root_of_the_mean_squared_error_whose_weight_is_d_over_two_sigma_squared():
    here = small_context()
    claim = scales.squared_error(here)
    numbers = claim.numbers
    assert numbers["largest_relative_difference"] < 1e-4
    best = numbers["root_mean_squared_error_train"]

    def cost(sigma: float) -> float:
        return best**2 / (2 * sigma**2) + math.log(sigma)

    assert cost(best) < min(cost(best * 1.01), cost(best * 0.99))
    x = torch.zeros(1, 1, 8, 8)
    cost_of = [float(-here.model.likelihood.log_prob(x, torch.full_like(x, error))) for error in (0.0, 0.5)]
    assert numbers["weight_of_mean_squared_error"] == pytest.approx((cost_of[1] - cost_of[0]) / 0.25, rel=1e-4)
    assert "D / (2σ²)" in claim.words[0]


@pytest.mark.parametrize("likelihood", [{"kind": "discretised-logistic"}, {"kind": "gaussian", "truncated": True}])
def test_beside_other_likelihoods_the_squared_error_is_that_of_a_small_gaussian_vae(likelihood):
    claim = scales.squared_error(small_context(likelihood))
    assert claim.words[0].startswith(f"The trained model's likelihood is another ({likelihood['kind']}): of a small")
    assert claim.numbers["learned"]
    assert claim.numbers["largest_relative_difference"] < 1e-4


@pytest.mark.parametrize(("height", "halvings"), [(28, 2), (8, 3), (7, 0), (6, 1)])
def test_the_small_residual_network_fits_the_image(height: int, halvings: int):
    assert len(scales.small((1, height, 28 if height != 8 else 8)).channels) == halvings + 1


def test_stable_diffusions_first_stage_is_the_large_network_and_what_the_words_add():
    """Its public weights (CompVis, kl-f8, without the 1 x 1 convolutions at the latents): 34,163,592 and 49,490,179."""
    claim = scales.latent_diffusion(small_context())
    assert claim.pictures == [], "an untrained network has no latents to show, and no scale"
    assert "scale_factor" not in claim.numbers["here"]
    large, more = claim.numbers["stable_diffusion_size"], claim.numbers["stable_diffusion_more"]
    assert (large["factor"], large["latents"], large["compression"]) == (8, [4, 64, 64], 48)
    assert more == {"middle": 9_443_328, "attention": 1_051_648, "third_blocks": 10_920_192}
    assert large["encoder_parameters"] + more["middle"] + more["attention"] == 34_163_592
    assert large["decoder_parameters"] + sum(more.values()) == 49_490_179


def test_a_trained_residual_network_is_measured_itself_and_its_scaled_latents_have_variance_one():
    network = {"kind": "residual", "channels": [4, 8], "latent_channels": 1, "blocks": 1}
    here = small_context(network=network, latent_dim=16)
    claim = scales.latent_diffusion(here)
    assert [picture.name for picture in claim.pictures] == ["latents"]
    assert claim.numbers["here"]["scaled_variance"] == pytest.approx(1, abs=0.1)
    assert claim.numbers["here"]["encoder_parameters"] == sum(p.numel() for p in here.model.encoder.parameters())
    posterior = here.model.encode(here.observed(here.train.pixels, "oracle"))
    variance = (posterior.mean.var() + torch.exp(posterior.log_variance).mean()).item()
    assert claim.numbers["here"]["scale_factor"] == pytest.approx(variance**-0.5, rel=0.02)
