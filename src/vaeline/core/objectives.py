"""The evidence lower bound, and what training maximises in its place. All in nats per image, unreduced."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.core.model import VAE


@dataclass(frozen=True)
class Terms:
    """The two terms of ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)), in nats per image."""

    reconstruction: Tensor  # [B], log p(x|z) at one sample z
    kl_per_dimension: Tensor  # [B, Z], closed form

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)): [B]."""
        return self.kl_per_dimension.sum(1)

    @property
    def elbo(self) -> Tensor:
        """A lower bound on log p(x), in expectation over the noise: [B]."""
        return self.reconstruction - self.kl


def elbo_terms(model: VAE, x: Tensor, noise: Tensor | None) -> Terms:
    """The ELBO's terms with one reparameterised sample (Kingma & Welling 2014, equation 7).

    x [B, C, H, W] in data space, noise [B, Z] standard normal. noise None is the plain autoencoder: z is the mean and
    there is no KL, so that `elbo` is then the reconstruction term alone and bounds nothing.
    """
    posterior = model.encode(x)
    if noise is None:
        z, kl = posterior.mean, torch.zeros_like(posterior.mean)
    else:
        z, kl = posterior.rsample(noise), model.prior.kl(posterior)
    return Terms(model.likelihood.log_prob(x, model.decode(z)), kl)


def surrogate(terms: Terms, beta: float | Tensor, free_bits: float) -> Tensor:
    """What training maximises, [B]: reconstruction - beta KL (Higgins et al. 2017); never what is reported.

    With free_bits = lambda > 0 nats, sum_j max(lambda, mean over the batch of KL_j), the same for each image, takes
    the place of the KL (Kingma et al. 2016, arXiv:1606.04934, section C.8).
    """
    if free_bits > 0:
        return terms.reconstruction - beta * terms.kl_per_dimension.mean(0).clamp(min=free_bits).sum()
    return terms.reconstruction - beta * terms.kl
