"""The model that section `model` of the params describes."""

import torch
from torch import nn

from vaeline import config
from vaeline.core import likelihoods, networks, priors
from vaeline.core.autoencoder_kl import Sizes, clamped_log_variance, kl_networks
from vaeline.core.distributions import bounded_log_variance
from vaeline.core.model import VAE
from vaeline.errors import UserError


def build_model(model: config.Model, shape: networks.Shape, objective: str, seed: int | None = None) -> VAE:
    """Model for images of `shape` (C, H, W), in float32 on the CPU; its weights depend on `seed` alone.

    Objective "autoencoder" gives an encoder without variances. Raises UserError where none fits these images.
    """
    try:
        model.check(shape)
    except ValueError as error:
        raise UserError(str(error)) from None
    likelihood: likelihoods.Likelihood
    prior: priors.Prior
    latent_dim, deterministic = model.latent_dim, objective == "autoencoder"
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        encoder, decoder = _networks(model, shape, numbers=1 if deterministic else 2)
        match model.likelihood:
            case config.Bernoulli():
                likelihood = likelihoods.Bernoulli()
            case config.Gaussian(sigma=sigma, truncated=truncated):
                likelihood = likelihoods.Gaussian(None if sigma == "learned" else sigma, truncated)
            case config.Laplace(scale=scale):
                likelihood = likelihoods.Laplace(None if scale == "learned" else scale)
            case config.ContinuousBernoulli():
                likelihood = likelihoods.ContinuousBernoulli()
            case config.DiscretisedLogistic(scale=scale):
                likelihood = likelihoods.DiscretisedLogistic(shape if scale == "pixel" else ())
        is_kl = isinstance(model.network, config.AutoencoderKl)
        if isinstance(likelihood, likelihoods.Gaussian | likelihoods.Laplace) and not is_kl:
            decoder.append(networks.UnitInterval())  # its output is a pixel
        match model.prior:
            case config.StandardNormal():
                prior = priors.StandardNormal()
            case config.Vamp(components=components):
                prior = priors.VampPrior(components, shape)
            case config.Fitted(components=components) | config.Mixture(components=components, covariance="full"):
                prior = priors.FullMixture(components, latent_dim)
            case config.Mixture(components=components):
                prior = priors.MixtureOfGaussians(components, latent_dim)
        return VAE(
            encoder,
            decoder,
            likelihood,
            prior,
            shape=shape,
            latent_dim=latent_dim,
            deterministic=deterministic,
            bounded=clamped_log_variance if is_kl else bounded_log_variance,
        )


def _networks(model: config.Model, shape: networks.Shape, numbers: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder, with so many numbers a latent dimension, and decoder."""
    latent_dim, outputs = model.latent_dim, model.latent_dim * numbers
    match model.network:
        case config.Mlp(hidden=widths) | config.Gated(hidden=widths) as network:
            activation = network.activation if isinstance(network, config.Mlp) else networks.GATED
            encoder = networks.mlp_encoder(shape, widths, outputs, activation)
            decoder = networks.mlp_decoder(shape, widths, latent_dim, activation)
        case config.Conv(channels=channels, hidden=hidden, activation=activation):
            encoder = networks.conv_encoder(shape, channels, hidden, outputs, activation)
            decoder = networks.conv_decoder(shape, channels, hidden, latent_dim, activation)
        case config.AutoencoderKl() as network:
            discrete = isinstance(model.likelihood, config.DiscretisedLogistic)
            encoder, decoder = kl_networks(shape, kl_sizes(network), discrete=discrete, mean_only=numbers == 1)
    return encoder, decoder


def kl_sizes(network: config.AutoencoderKl) -> Sizes:
    """The sizes that the params give an AutoencoderKL."""
    return Sizes(**network.model_dump(exclude={"kind"}))
