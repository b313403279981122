"""Readings of the encoder's output; the best σ of a Gaussian likelihood; the trained model as a first stage."""

import math

import pytest
import torch

from model_sections import AUTOENCODER_KL
from small_theory_context import small_context
from vaeline.config import Model
from vaeline.theory import scales
from vaeline.training.build import build_model


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


def test_stable_diffusions_sizes_are_those_of_its_network():
    claim = scales.latent_diffusion(small_context())
    assert claim.pictures == [], "the trained model is another: no latents to show, and no scale"
    theirs = claim.numbers["stable_diffusion"]
    channels, network = [128, 256, 512, 512], {"kind": "autoencoder-kl", "layers_per_block": 2, "latent_channels": 4}
    section = {"latent_dim": 4 * 64 * 64, "network": network | {"block_out_channels": channels}}
    with torch.device("meta"):
        model = build_model(Model.model_validate(section | {"likelihood": {"kind": "gaussian"}}), (3, 512, 512), "elbo")
        assert list(model.encoder[:3](torch.zeros(1, 3, 512, 512)).chunk(2, 1)[0].shape[1:]) == theirs["latents"]
    counts = [sum(p.numel() for p in part.network.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [theirs["encoder_parameters"], theirs["decoder_parameters"]]
    assert theirs["compression"] == 3 * 512 * 512 / model.latent_dim


def test_a_trained_first_stage_is_measured_itself_and_its_scaled_latents_have_variance_one():
    here = small_context(network=AUTOENCODER_KL, latent_dim=16)
    claim = scales.latent_diffusion(here)
    assert [picture.name for picture in claim.pictures] == ["latents"]
    assert claim.numbers["here"]["scaled_variance"] == pytest.approx(1, abs=0.1)
    posterior = here.model.encode(here.observed(here.train.pixels, "oracle"))
    variance = (posterior.mean.var() + torch.exp(posterior.log_variance).mean()).item()
    assert claim.numbers["here"]["scale_factor"] == pytest.approx(variance**-0.5, rel=0.02)
