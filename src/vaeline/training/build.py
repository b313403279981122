"""The model that section `model` of the params describes."""

import math

import torch
from torch import nn

from vaeline import config
from vaeline.core import likelihoods, networks, priors, residual
from vaeline.core.model import VAE
from vaeline.errors import UserError


def build_model(model: config.Model, shape: networks.Shape, objective: str, seed: int | None = None) -> VAE:
    """Build section `model` of the params for images of `shape` (C, H, W), in float32 on the CPU.

    The weights are drawn from `seed`; the global generator is left as it was. Objective "autoencoder" gives an
    encoder without variances.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        deterministic = objective == "autoencoder"
        encoder, decoder = _networks(model, shape, numbers=1 if deterministic else 2)
        likelihood = _likelihood(model.likelihood)
        bounded = isinstance(likelihood, likelihoods.Gaussian | likelihoods.DiscretisedLogistic)
        return VAE(
            encoder,
            nn.Sequential(*decoder, networks.UnitInterval()) if bounded else decoder,  # their output is a pixel
            likelihood,
            _prior(model, shape),
            shape=shape,
            latent_dim=model.latent_dim,
            deterministic=deterministic,
        )


def _networks(model: config.Model, shape: networks.Shape, numbers: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder, with so many numbers a latent dimension, and decoder."""
    outputs = model.latent_dim * numbers
    match model.network:
        case config.Mlp(hidden=widths, activation=activation):
            return (
                networks.mlp_encoder(shape, widths, outputs, activation),
                networks.mlp_decoder(shape, widths, model.latent_dim, activation),
            )
        case config.Gated(hidden=widths):
            return (
                networks.mlp_encoder(shape, widths, outputs, networks.GATED),
                networks.mlp_decoder(shape, widths, model.latent_dim, networks.GATED),
            )
        case config.Conv(channels=channels, hidden=hidden, activation=activation):
            return (
                networks.conv_encoder(shape, channels, hidden, outputs, activation),
                networks.conv_decoder(shape, channels, hidden, model.latent_dim, activation),
            )
        case config.Residual(channels=channels, latent_channels=latent_channels, blocks=blocks):
            _refuse_misfit(model, shape, channels, latent_channels)
            return (
                residual.residual_encoder(shape, channels, blocks, latent_channels * numbers),
                residual.residual_decoder(shape, channels, blocks, latent_channels),
            )


def _refuse_misfit(model: config.Model, shape: networks.Shape, channels: list[int], latent_channels: int) -> None:
    try:
        latents = residual.latent_shape(shape, channels, latent_channels)
    except ValueError as error:
        times = len(channels) - 1
        raise UserError(f"model.network: its channels halve the image {times} times: {error}") from None
    if model.latent_dim != math.prod(latents):
        product = " x ".join(map(str, latents))  # c x h x w
        raise UserError(
            f"model.latent_dim: must be {math.prod(latents)} (latent_channels x height x width = {product}) "
            f"for model.network on images of {shape[1]} x {shape[2]}; found {model.latent_dim}"
        )


def _likelihood(likelihood: config.Likelihood) -> likelihoods.Likelihood:
    match likelihood:
        case config.Bernoulli():
            return likelihoods.Bernoulli()
        case config.Gaussian(sigma=sigma):
            return likelihoods.Gaussian(None if sigma == "learned" else sigma)
        case config.ContinuousBernoulli():
            return likelihoods.ContinuousBernoulli()
        case config.DiscretisedLogistic():
            return likelihoods.DiscretisedLogistic()


def _prior(model: config.Model, shape: networks.Shape) -> priors.Prior:
    match model.prior:
        case config.StandardNormal():
            return priors.StandardNormal()
        case config.Vamp(components=components):
            return priors.VampPrior(components, shape)
        case config.Mixture(components=components):
            return priors.MixtureOfGaussians(components, model.latent_dim)
