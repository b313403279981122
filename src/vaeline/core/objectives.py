"""The bounds on log p(x), and what training maximises in the ELBO's place. All in nats per image, unreduced."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.core.model import VAE


@dataclass(frozen=True)
class Terms:
    """The two terms of ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)), in nats per image."""

    reconstruction: Tensor  # [B], log p(x|z) at a sample z, or its mean over K samples
    kl_per_dimension: Tensor  # [B, Z], closed form; or [B, 1] at those samples, where the prior does not factorise

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)): [B]."""
        return self.kl_per_dimension.sum(1)

    @property
    def elbo(self) -> Tensor:
        """A lower bound on log p(x), in expectation over the noise: [B]."""
        return self.reconstruction - self.kl


def elbo_terms(model: VAE, x: Tensor, noise: Tensor | None) -> Terms:
    """The ELBO's terms with one reparameterised sample (Kingma & Welling 2014, equation 7), or K of them.

    x [B, C, H, W] in data space, noise [B, Z] or [K, B, Z] standard normal. noise None is the plain autoencoder: z is
    the mean and there is no KL, so that `elbo` is then the reconstruction term alone and bounds nothing.
    """
    posterior = model.encode(x)
    if noise is None:
        z, kl = posterior.mean, torch.zeros_like(posterior.mean)
    else:
        z = posterior.rsample(noise)
        kl = model.prior.kl(posterior, z)
    if z.ndim == 3:
        return Terms(conditional_log_likelihood(model, x, z).mean(0), kl)
    return Terms(model.likelihood.log_prob(x, model.decode(z)), kl)


def surrogate(terms: Terms, beta: float | Tensor, free_bits: float) -> Tensor:
    """What training maximises, [B]: reconstruction - beta KL (Higgins et al. 2017); never what is reported.

    With free_bits = lambda > 0 nats, sum_j max(lambda, mean over the batch of KL_j), the same for each image, takes
    the place of the KL (Kingma et al. 2016, arXiv:1606.04934, section C.8).
    """
    if free_bits > 0:
        return terms.reconstruction - beta * terms.kl_per_dimension.mean(0).clamp(min=free_bits).sum()
    return terms.reconstruction - beta * terms.kl


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """IWAE-k, log((1/K) sum_k w_k) of log w = log p(x|z) + log p(z) - log q(z|x): [K, B] -> [B].

    Between the ELBO (K = 1) and log p(x) in expectation, and never falls as K grows (Burda et al. 2015,
    arXiv:1509.00519, theorem 1).
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def conditional_log_likelihood(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x|z) in nats for K latents an image: x [B, C, H, W], z [K, B, Z] -> [K, B]."""
    output = model.decode(z.flatten(0, 1))  # [K B, C, H, W]
    repeated = x.expand(len(z), *x.shape).flatten(0, 1)  # [K B, C, H, W]
    return model.likelihood.log_prob(repeated, output).view(len(z), -1)
