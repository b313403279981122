"""p(z) families: what the latents look like before an image is seen."""
# ruff: noqa: D102 - the base classes document every method

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaeline.core.distributions import LOG_VARIANCE_BOUND, DiagonalGaussian, bounded_log_variance, soft_bound


class Prior(nn.Module):
    """What every p(z) offers."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: [..., Z] -> [...]."""
        raise NotImplementedError

    def sample(self, noise: Tensor) -> Tensor:
        """Samples of p(z), a function of standard normal noise: [..., Z] -> [..., Z]."""
        raise NotImplementedError

    def precision(self, z: Tensor) -> Tensor:
        """A curvature of -log p at z, positive definite: [B, Z] -> [B, Z, Z]."""
        raise NotImplementedError

    def kl(self, posterior: DiagonalGaussian, z: Tensor) -> Tensor:
        """KL(posterior || p) in nats, [B, 1], estimated at its samples z [..., B, Z]: mean of log q(z|x) - log p(z).

        Negative where a sample happens to be likelier under p. A prior that factorises over dimensions gives each its
        own closed form instead, [B, Z]; the sum over the last axis is the KL in either case.
        """
        rate = posterior.log_prob(z) - self.log_prob(z)  # [..., B]
        return rate.reshape(-1, rate.shape[-1]).mean(0).unsqueeze(1)

    def marginal_kl(self, posterior: DiagonalGaussian, z: Tensor) -> Tensor:
        """KL(q(z_d|x) || p(z_d)) of each dimension to the prior's marginal, in nats, at samples z [B, Z]: [B, Z].

        Their sum is the KL where the prior factorises; else the KL is more, or less: nothing orders the two.
        """
        raise NotImplementedError


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        return noise

    def precision(self, z: Tensor) -> Tensor:
        return torch.ones_like(z).diag_embed()

    def kl(self, posterior: DiagonalGaussian, z: Tensor | None = None) -> Tensor:
        """KL(posterior || p) in closed form, which needs no sample: [B, Z]."""
        return posterior.kl_to_standard_normal()

    def marginal_kl(self, posterior: DiagonalGaussian, z: Tensor | None = None) -> Tensor:
        return self.kl(posterior)


class Mixture(Prior):
    """p(z) = sum_k w_k N(z; m_k, diag(v_k)): what a mixture of K diagonal Gaussians needs to be one."""

    logits: Tensor  # [K], where the weights are learned

    def components(self) -> DiagonalGaussian:
        """The K Gaussians, or of full ones the marginals: mean and log variance [K, Z]."""
        raise NotImplementedError

    def roots(self) -> Tensor:
        """S_k with m_k + S_k noise a sample of component k: standard deviations [K, Z], or matrices [K, Z, Z]."""
        return torch.exp(0.5 * self.components().log_variance)

    def log_weights(self) -> Tensor:
        """log w_k, whose exponentials sum to 1: [K]."""
        return self.logits.log_softmax(0)

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(z), dim=-1)

    def precision(self, z: Tensor) -> Tensor:
        """The components' precisions, each by its responsibility for z."""
        return (self._log_joint(z).softmax(-1) @ torch.exp(-self.components().log_variance)).diag_embed()

    def marginal_kl(self, posterior: DiagonalGaussian, z: Tensor) -> Tensor:
        gaussians, log_weights, found = self.components(), self.log_weights(), []
        for d in range(z.shape[-1]):
            one = slice(None), slice(d, d + 1)
            log_densities = gaussians[one].log_prob(z[one].unsqueeze(1))  # [B, K]
            found.append(posterior[one].log_prob(z[one]) - torch.logsumexp(log_weights + log_densities, dim=1))
        return torch.stack(found, dim=1)

    def _log_joint(self, z: Tensor) -> Tensor:
        """log w_k N(z; m_k, v_k) in nats: [..., Z] -> [..., K].

        |z - m_k|^2 / v_k is multiplied out, so that two matrix products take the place of [..., K, Z] numbers; in
        float64, because they cancel, and because autocast and TF32 leave float64 alone.
        """
        gaussians = self.components()
        mean, log_variance = gaussians.mean.double(), gaussians.log_variance.double()
        precision, wide = torch.exp(-log_variance), z.double()
        squares = wide.square() @ precision.T - 2 * wide @ (mean * precision).T + (mean.square() * precision).sum(1)
        constants = log_variance.sum(1) + z.shape[-1] * math.log(2 * math.pi)  # [K]
        log_densities = (-0.5 * (squares + constants)).to(z.dtype)  # [..., K]
        return self.log_weights() + log_densities

    def sample(self, noise: Tensor) -> Tensor:
        """The noise chooses a component and a point in it.

        The first coordinate, made uniform by the normal distribution function, picks the component by its weight;
        where it fell between that component's bounds is uniform again, and becomes the first coordinate's noise
        (recycling, Devroye 1986, section II.5): exact, and no second source of noise.
        """
        uniform = torch.special.ndtr(noise[..., 0].double())
        weights = self.log_weights().double().exp()
        upper = weights.cpu().cumsum(0).to(weights)  # on CUDA no deterministic one exists
        chosen = torch.searchsorted(upper, uniform, right=True).clamp(max=len(weights) - 1)
        inside = ((uniform - upper[chosen]) / weights[chosen] + 1).clamp(2**-53, 1 - 2**-53)
        first = torch.special.ndtri(inside).to(noise)
        return self._sample_of(chosen, torch.cat([first.unsqueeze(-1), noise[..., 1:]], dim=-1))

    def _sample_of(self, chosen: Tensor, noise: Tensor) -> Tensor:
        """Samples of these components [...] from noise [..., Z]."""
        return self.components()[chosen].rsample(noise)


class MixtureOfGaussians(Mixture):
    """A mixture with learned means, variances (log variances softly bounded) and weights."""

    def __init__(self, components: int, latent_dim: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(components, latent_dim))
        self.raw_log_variances = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def components(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.means, bounded_log_variance(self.raw_log_variances))


class FullMixture(Mixture):
    """p(z) = sum_k w_k N(z; m_k, (C_k C_k^T)^-1), C_k upper triangular with a softly bounded log diagonal."""

    def __init__(self, components: int, latent_dim: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(components, latent_dim))
        self.raw_factors = nn.Parameter(torch.zeros(components, latent_dim, latent_dim))  # below the diagonal: unused
        self.logits = nn.Parameter(torch.zeros(components))

    def factors(self) -> Tensor:
        """C_k: [K, Z, Z]."""
        log_diagonal = soft_bound(self.raw_factors.diagonal(dim1=1, dim2=2), LOG_VARIANCE_BOUND / 2)
        return torch.triu(self.raw_factors, 1) + torch.diag_embed(log_diagonal.exp())

    @torch.no_grad()
    def set(self, weights: Tensor, means: Tensor, factors: Tensor) -> None:
        """Take weights [K], means [K, Z] and factors C_k [K, Z, Z], within the bounds."""
        bound = LOG_VARIANCE_BOUND / 2
        log_diagonal = (factors.diagonal(dim1=1, dim2=2).log() / bound).clamp(-0.999, 0.999).atanh() * bound
        self.raw_factors.copy_(factors.triu(1) + log_diagonal.diag_embed())
        self.means.copy_(means)
        self.logits.copy_(weights.log())

    def components(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.means, self.roots().square().sum(2).log())

    def roots(self) -> Tensor:
        """C_k^-T: [K, Z, Z]."""
        factors = self.factors().double()
        identity = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
        roots: Tensor = torch.linalg.solve_triangular(factors.mT, identity, upper=False)
        return roots.to(self.means)

    def precision(self, z: Tensor) -> Tensor:
        factors = self.factors()
        precisions = factors @ factors.mT  # [K, Z, Z]
        return torch.einsum("bk,kij->bij", self._log_joint(z).softmax(-1), precisions)

    def _log_joint(self, z: Tensor) -> Tensor:
        """log w_k N(z; m_k, (C_k C_k^T)^-1) in nats, by |(z - m_k) C_k|^2 in float64: [..., Z] -> [..., K]."""
        factors, mean = self.factors().double(), self.means.double()
        whitened = (z.double() @ factors.transpose(0, 1).flatten(1)).view(*z.shape[:-1], *mean.shape)  # [..., K, Z]
        squares = (whitened - (mean.unsqueeze(1) @ factors).squeeze(1)).square().sum(-1)
        log_determinants = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        log_densities = log_determinants - 0.5 * (squares + mean.shape[1] * math.log(2 * math.pi))
        return self.log_weights() + log_densities.to(z.dtype)

    def _sample_of(self, chosen: Tensor, noise: Tensor) -> Tensor:
        roots, z = self.roots(), torch.empty_like(noise)
        for k in torch.unique(chosen).tolist():  # one at a time: Z^2 numbers a component, not a sample
            z[chosen == k] = self.means[k] + noise[chosen == k] @ roots[k].mT
        return z


class VampPrior(Mixture):
    """p(z) = (1/K) sum_k q(z|u_k): the posteriors of K learned pseudo-inputs u_k, equally weighted.

    Tomczak & Welling 2018, arXiv:1705.07120. The pseudo-inputs live in data space and are not confined to it; they
    start as grey noise. The encoder stays the model's: it is bound as a function, so that no parameter has two owners.
    """

    def __init__(self, components: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(0.5 + 0.1 * torch.randn(components, *shape))  # [K, C, H, W]
        self._encode: Callable[[Tensor], DiagonalGaussian]  # the model's, by `bind`

    def bind(self, encode: Callable[[Tensor], DiagonalGaussian]) -> None:
        """Take q(z|x) from the model that this is the prior of."""
        self._encode = encode

    def components(self) -> DiagonalGaussian:
        return self._encode(self.pseudo_inputs)

    def log_weights(self) -> Tensor:
        return self.pseudo_inputs.new_full((len(self.pseudo_inputs),), -math.log(len(self.pseudo_inputs)))
