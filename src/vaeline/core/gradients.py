"""Estimators of a bound's gradient with respect to every parameter, from K samples an image.

With log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x) and z_k ~ q(z|x), a bound L is the mean of the log w_k (ELBO)
or the log of the mean of the w_k (IWAE-k); v_k = dL / dlog w_k is 1/K, or the softmax of the log w_k.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import Terms, conditional_log_likelihood, elbo_terms, importance_weighted_bound, surrogate

Bound = Literal["elbo", "iwae"]
Estimator = Literal[
    "pathwise", "score-function", "score-function-baseline", "sticking-the-landing", "doubly-reparameterised"
]


@dataclass(frozen=True)
class Estimate:
    """A bound to report and, apart from it, what to maximise: never report the surrogate."""

    surrogate: Tensor  # [B]: its gradient estimates the bound's; its value means nothing
    terms: Terms  # of the ELBO, means over the samples, without gradients; kl_per_dimension is [B, 1] unless closed
    bound: Tensor  # [B]: the bound itself, beta = 1, without gradients


def estimate(
    model: VAE, x: Tensor, noise: Tensor, estimator: Estimator, *, bound: Bound = "elbo", beta: float | Tensor = 1.0
) -> Estimate:
    """Estimate the gradient of a bound at x [B, C, H, W] (data space) from standard normal noise [K, B, Z].

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
    _refuse_nonsense(estimator, bound, len(noise), beta)
    if estimator == "pathwise" and bound == "elbo":
        terms = elbo_terms(model, x, noise)
        return Estimate(surrogate(terms, beta, free_bits=0.0), _detached(terms), terms.elbo.detach())
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
    terms = _detached(Terms(reconstruction.mean(0), -log_ratio.mean(0).unsqueeze(1)))
    value = terms.elbo if bound == "elbo" else importance_weighted_bound((reconstruction + log_ratio).detach())
    maximised = _surrogate(reconstruction + beta * log_ratio, log_q, z, estimator, bound)
    return Estimate(maximised, terms, value)


def _detached(terms: Terms) -> Terms:
    return Terms(terms.reconstruction.detach(), terms.kl_per_dimension.detach())


def _refuse_nonsense(estimator: Estimator, bound: Bound, samples: int, beta: float | Tensor) -> None:
    if estimator == "doubly-reparameterised" and bound != "iwae":
        raise ValueError("doubly-reparameterised is for the bound iwae; for the elbo it is sticking-the-landing")
    if estimator == "score-function-baseline" and samples < 2:
        raise ValueError("score-function-baseline leaves one sample out: it needs at least 2")
    if bound == "iwae" and (isinstance(beta, Tensor) or beta != 1):
        raise ValueError("beta weighs the ELBO's KL; the bound iwae has none")


def _surrogate(log_w: Tensor, log_q: Tensor, z: Tensor, estimator: Estimator, bound: Bound) -> Tensor:
    """[K, B], [K, B], [K, B, Z] -> [B]."""
    match estimator:
        case "pathwise" | "sticking-the-landing":
            return _bound(log_w, bound)
        case "score-function":
            signal = log_w / len(log_w) if bound == "elbo" else _bound(log_w, bound)  # [K, B] or [B]
            return _bound(log_w, bound) + (signal.detach() * log_q).sum(0)
        case "score-function-baseline":
            signal = _bound(log_w, bound) - _left_out(log_w.detach(), bound)  # [K, B]
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


def _left_out(log_weights: Tensor, bound: Bound) -> Tensor:
    """The bound with the k-th log weight replaced by the mean of the other K - 1, for every k: [K, B] -> [K, B]."""
    samples = len(log_weights)
    others = (log_weights.sum(0) - log_weights) / (samples - 1)  # [K, B]
    own = torch.eye(samples, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)  # [K, K, 1]
    return _bound(torch.where(own, others, log_weights.unsqueeze(1)), bound)  # [K (weight), K (left out), B]
