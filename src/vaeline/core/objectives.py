"""The bounds on log p(x), what training maximises in their place, and estimators of their gradients.

All in nats per image, unreduced.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.model import VAE

Bound = Literal["elbo", "iwae"]
Estimator = Literal[
    "pathwise", "score-function", "score-function-baseline", "sticking-the-landing", "doubly-reparameterised"
]


@dataclass(frozen=True)
class Terms:
    """The two terms of ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)), in nats per image."""

    reconstruction: Tensor  # [B], log p(x|z) at a sample z, or its mean over K samples
    kl_per_dimension: Tensor  # [B, Z], closed form; or [B, 1] at those samples, where the prior does not factorise
    output: Tensor | None = None  # [B, C, H, W], the decoder's at one sample

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)): [B]."""
        return self.kl_per_dimension.sum(1)

    @property
    def elbo(self) -> Tensor:
        """A lower bound on log p(x), in expectation over the noise: [B]."""
        return self.reconstruction - self.kl

    def detach(self) -> "Terms":
        """Without gradients."""
        return Terms(self.reconstruction.detach(), self.kl_per_dimension.detach())


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
    output = model.decode(z)
    return Terms(model.likelihood.log_prob(x, output), kl, output)


def surrogate(terms: Terms, beta: float | Tensor, free_bits: float) -> Tensor:
    """What training maximises, [B]: reconstruction - beta KL (Higgins et al. 2017); never what is reported.

    With free_bits = lambda > 0 nats, sum_j max(lambda, mean over the batch of KL_j), the same for each image, takes
    the place of the KL (Kingma et al. 2016, arXiv:1606.04934, section C.8).
    """
    if free_bits > 0:
        return terms.reconstruction - beta * terms.kl_per_dimension.mean(0).clamp(min=free_bits).sum()
    return terms.reconstruction - beta * terms.kl


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """IWAE-k, log((1/K) sum_k w_k): [K, B] -> [B]; rises with K to log p(x) (Burda et al. 2015, arXiv:1509.00519)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def log_weights(model: VAE, x: Tensor, noise: Tensor, posterior: DiagonalGaussian | None = None) -> Tensor:
    """log w = log p(x|z) + log p(z) - log q(z|x) in nats: x [B, C, H, W], standard normal noise [K, B, Z] -> [K, B].

    The densities at the sample, not the closed-form KL: the mean over K of w is then an unbiased estimate of p(x)
    (Burda et al. 2015, arXiv:1509.00519, equation 8).
    """
    posterior = posterior or model.encode(x)
    z = posterior.rsample(noise)  # [K, B, Z]
    return log_joint(model, x, z) - posterior.log_prob(z)


def log_joint(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) = log p(x|z) + log p(z) in nats for K latents an image: x [B, C, H, W], z [K, B, Z] -> [K, B]."""
    return conditional_log_likelihood(model, x, z) + model.prior.log_prob(z)


def conditional_log_likelihood(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x|z) in nats for K latents an image: x [B, C, H, W], z [K, B, Z] -> [K, B]."""
    output = model.decode(z.flatten(0, 1))  # [K B, C, H, W]
    repeated = x.expand(len(z), *x.shape).flatten(0, 1)  # [K B, C, H, W]
    return model.likelihood.log_prob(repeated, output).view(len(z), -1)


@dataclass(frozen=True)
class Estimate:
    """A bound to report and, apart from it, what to maximise: never report the surrogate."""

    surrogate: Tensor  # [B]: its gradient estimates the bound's; its value means nothing
    terms: Terms  # of the ELBO, means over the samples, without gradients; kl_per_dimension is [B, 1] unless closed
    bound: Tensor  # [B]: the bound itself, beta = 1, without gradients


def estimate(
    model: VAE, x: Tensor, noise: Tensor, estimator: Estimator, *, bound: Bound = "elbo", beta: float | Tensor = 1.0
) -> Estimate:
    """Estimate the gradient of a bound L at x [B, C, H, W] (data space) from standard normal noise [K, B, Z].

    With log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), L is the mean of the log w_k (ELBO) or the log of the mean
    of the w_k (IWAE-k); v_k = dL / dlog w_k is 1/K, or the softmax of the log w_k.

    - pathwise: through z = mean + std * noise (Kingma & Welling 2014); the ELBO's KL in closed form
      where the prior has one.
    - score-function: sum_k s_k grad log q(z_k|x) + grad L at fixed z, the signal s_k being log w_k / K for the ELBO
      and L for IWAE (Williams 1992, REINFORCE; Ranganath et al. 2014, arXiv:1401.0118). Needs no gradient in z.
    - score-function-baseline: s_k = L - L with log w_k replaced by the mean of the others', which does not depend on
      z_k: leave-one-out for the ELBO, VIMCO for IWAE (Mnih & Rezende 2016, arXiv:1602.06725). K >= 2.
    - sticking-the-landing: pathwise without the score of q, which has mean zero (Roeder et al. 2017,
      arXiv:1703.09194): no variance where q is the true posterior.
    - doubly-reparameterised: that score reparameterised once more, the encoder's gradient becoming
      sum_k v_k^2 dlog w_k/dz_k dz_k/dphi (Tucker et al. 2018, arXiv:1810.04152). IWAE only: for the ELBO it is the
      one before.

    All are unbiased for every parameter, with one exception: sticking the landing under IWAE with K >= 2 drops
    sum_k v_k grad log q(z_k|x), whose mean is not zero there; it is biased for the encoder and not for the rest.
    `beta` weighs log p(z) - log q(z|x) in the surrogate of the ELBO alone, not in what is reported.
    Raises ValueError for a combination that has no meaning.
    """
    if estimator == "doubly-reparameterised" and bound != "iwae":
        raise ValueError("doubly-reparameterised is for the bound iwae; for the elbo it is sticking-the-landing")
    if estimator == "score-function-baseline" and len(noise) < 2:
        raise ValueError("score-function-baseline leaves one sample out: it needs at least 2")
    if bound == "iwae" and (isinstance(beta, Tensor) or beta != 1):
        raise ValueError("beta weighs the ELBO's KL; the bound iwae has none")
    if estimator == "pathwise" and bound == "elbo":
        terms = elbo_terms(model, x, noise)
        return Estimate(surrogate(terms, beta, free_bits=0.0), terms.detach(), terms.elbo.detach())
    posterior = model.encode(x)
    z = posterior.rsample(noise)  # [K, B, Z]
    scored = posterior  # the q whose log-density is taken
    if estimator.startswith("score-function"):
        z = z.detach()
    elif estimator != "pathwise":
        scored = DiagonalGaussian(posterior.mean.detach(), posterior.log_variance.detach())

    reconstruction = conditional_log_likelihood(model, x, z)  # [K, B]
    log_q = scored.log_prob(z)  # [K, B]
    log_ratio = model.prior.log_prob(z) - log_q  # [K, B]
    terms = Terms(reconstruction.mean(0), -log_ratio.mean(0).unsqueeze(1)).detach()
    value = terms.elbo if bound == "elbo" else importance_weighted_bound((reconstruction + log_ratio).detach())
    maximised = _surrogate(reconstruction + beta * log_ratio, log_q, z, estimator, bound)
    return Estimate(maximised, terms, value)


def _surrogate(log_w: Tensor, log_q: Tensor, z: Tensor, estimator: Estimator, bound: Bound) -> Tensor:
    """[K, B], [K, B], [K, B, Z] -> [B]."""
    match estimator:
        case "pathwise" | "sticking-the-landing":
            return _bound(log_w, bound)
        case "score-function":
            signal = log_w / len(log_w) if bound == "elbo" else _bound(log_w, bound)  # [K, B] or [B]
            return _bound(log_w, bound) + (signal.detach() * log_q).sum(0)
        case "score-function-baseline":
            others = (log_w.sum(0) - log_w) / (len(log_w) - 1)  # [K, B]
            own = torch.eye(len(log_w), dtype=torch.bool, device=log_w.device).unsqueeze(-1)  # [K, K, 1]
            baseline = _bound(torch.where(own, others, log_w.unsqueeze(1)), bound)  # [K, K (left out), B] -> [K, B]
            signal = _bound(log_w, bound) - baseline
            return _bound(log_w, bound) + (signal.detach() * log_q).sum(0)
        case "doubly-reparameterised":
            weight = log_w.detach().softmax(0)  # [K, B]
            if z.requires_grad:
                # v_k once more on the way to the encoder
                z.register_hook(lambda gradient: weight.unsqueeze(-1) * gradient)  # type: ignore[no-untyped-call]
            return (weight * log_w).sum(0)


def _bound(log_weights: Tensor, bound: Bound) -> Tensor:
    """[K, ..., B] -> [..., B]."""
    return log_weights.mean(0) if bound == "elbo" else importance_weighted_bound(log_weights)
