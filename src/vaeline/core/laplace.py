"""Laplace's approximation of p(z|x), image by image, as a proposal that covers what the encoder's q(z|x) misses."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.model import VAE
from vaeline.core.objectives import log_joint, log_weights

MOST_LATENTS = 64  # a step costs as many decoded images as there are latent dimensions: beyond, q(z|x) is the proposal
STEPS = 6  # of Gauss and Newton
STEP_SIZES = (0.0, 0.25, 1.0)  # tried at each, the best taken
DEGREES = 8  # of freedom of Student's t, whose tails keep the weights' variance finite
DERIVATIVES_AT_ONCE = 2**21  # of pixels in latents: up to two GB
DEFENSIVE = 10  # one sample in so many is of q(z|x) (Hesterberg 1995)


@dataclass(frozen=True)
class LaplaceProposal:
    """Student t about the mode of p(z|x), and q(z|x) as a defence: their mixture, in fixed shares of the samples."""

    posterior: DiagonalGaussian  # q(z|x)
    mode: Tensor  # [B, Z], float64
    factor: Tensor  # C [B, Z, Z], lower triangular, float64: the scale's square is (C C^T)^-1

    def __getitem__(self, part: slice) -> "LaplaceProposal":
        """Those of some images."""
        return LaplaceProposal(self.posterior[part], self.mode[part], self.factor[part])

    def log_weights(self, model: VAE, x: Tensor, normal: Tensor, chi_squared: Tensor, start: int, k: int) -> Tensor:
        """log w = log p(x, z) - log mixture(z) in nats, float64, of the samples from `start` on of k: [K, B].

        normal [K, B, Z] standard normal, chi_squared [K, B] with DEGREES degrees of freedom. The first k // DEFENSIVE
        samples are of q(z|x), the others mode + C^-T normal sqrt(DEGREES / chi_squared); weighed by the mixture of
        both, the mean over all k is an unbiased estimate of p(x) (Owen & Zhou 2000).
        """
        share, size = (k // DEFENSIVE) / k, self.mode.shape[1]
        stretched = (normal.double() * (DEGREES / chi_squared.double()).sqrt().unsqueeze(-1)).permute(1, 2, 0)
        offsets = torch.linalg.solve_triangular(self.factor.mT, stretched, upper=True).permute(2, 0, 1)  # [K, B, Z]
        defends = torch.arange(start, start + len(normal), device=normal.device) < k // DEFENSIVE
        z = torch.where(defends.view(-1, 1, 1), self.posterior.rsample(normal), (self.mode + offsets).to(normal))
        squares = ((z.double() - self.mode).unsqueeze(-2) @ self.factor).square().sum((-2, -1))  # [K, B]
        log_t = (
            math.lgamma((DEGREES + size) / 2)
            - math.lgamma(DEGREES / 2)
            - size / 2 * math.log(DEGREES * math.pi)
            + self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            - (DEGREES + size) / 2 * torch.log1p(squares / DEGREES)
        )
        log_q = log_t + math.log1p(-share)
        if share:
            log_q = torch.logaddexp(log_q, self.posterior.log_prob(z).double() + math.log(share))
        return log_joint(model, x, z).double() - log_q


@torch.no_grad()
def laplace_proposal(model: VAE, x: Tensor) -> LaplaceProposal:
    """Proposal for images x [B, C, H, W] in data space, from the mode of log p(x, z) and its curvature there.

    From the mean of q(z|x), Gauss-Newton steps z + t H^-1 g, t the best of STEP_SIZES: g is the gradient of
    log p(x, z) and H = J^T W J + P, with J the decoder's Jacobian, W >= 0 minus the second derivative of log p(x|z) in
    the decoder's output and P > 0 the prior's precision. A Gaussian likelihood has H = P + J^T J / sigma^2; the kinks
    of a Laplace one are smoothed over the outputs that the last step's H, at first q(z|x), leaves open.
    """
    posterior = model.encode(x)
    z, factor = posterior.mean, torch.exp(-0.5 * posterior.log_variance.double()).diag_embed()
    sizes = z.new_tensor(STEP_SIZES).view(-1, 1, 1)
    for _ in range(STEPS):
        gradient, factor = _expand(model, x, z, factor)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1).to(z)
        candidates = z + sizes * step  # [T, B, Z]
        values = log_joint(model, x, candidates)
        z = candidates[values.nan_to_num(-math.inf).argmax(0), torch.arange(len(z), device=z.device)]
    return LaplaceProposal(posterior, z.double(), _expand(model, x, z, factor)[1])


def best_diagonal(
    model: VAE, x: Tensor, start: LaplaceProposal, generator: torch.Generator, *, steps: int = 200, samples: int = 16
) -> DiagonalGaussian:
    """Diagonal Gaussian of each image with about the highest ELBO: the gap left is that of q's form.

    By Adam with reparameterised samples, from the mode and the diagonal of the curvature there (Cremer, Li & Duvenaud
    2018, arXiv:1801.03558, call the rest of the gap amortisation).
    """
    mean = start.mode.to(x, copy=True).requires_grad_()
    log_variance = (-start.factor.square().sum(-1).log()).to(x).requires_grad_()
    optimiser = torch.optim.Adam([mean, log_variance], lr=0.01)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        noise = torch.randn(samples, *mean.shape, generator=generator).to(x)
        elbo = log_weights(model, x, noise, DiagonalGaussian(mean, log_variance)).mean(0)
        mean.grad, log_variance.grad = torch.autograd.grad(-elbo.sum(), [mean, log_variance])
        optimiser.step()
    return DiagonalGaussian(mean.detach(), log_variance.detach())


def _expand(model: VAE, x: Tensor, z: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of log p(x, z) in z [B, Z], and the Cholesky factor of H [B, Z, Z], float64; `factor`: one so far."""
    images = max(1, DERIVATIVES_AT_ONCE // (z.shape[1] * x[0].numel()))
    parts = zip(*(torch.split(tensor, images) for tensor in (x, z, factor)), strict=True)
    gradients, factors = zip(*(_expand_at_once(model, *part) for part in parts), strict=True)
    return torch.cat(gradients), torch.cat(factors)


def _expand_at_once(model: VAE, x: Tensor, z: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, *z.shape)  # [Z, B, Z]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 loads its own deprecated torch.jit.script here
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # of gated layers, one by one
        some = max(1, DERIVATIVES_AT_ONCE // x.numel())
        columns = torch.func.vmap(lambda v: torch.func.jvp(model.decode, (z,), (v,))[1], chunk_size=some)
        jacobian = columns(basis)  # [Z, B, C, H, W]
    jacobian = jacobian.flatten(2).transpose(0, 1)  # [B, Z, D]

    def spread() -> Tensor:  # of the output
        offsets: Tensor = torch.linalg.solve_triangular(factor, jacobian.double(), upper=False)
        return offsets.square().sum(1).sqrt().clamp(min=1e-6).view_as(x).to(x)

    with torch.enable_grad():
        output = model.decode(z).detach().requires_grad_()
        log_p = model.likelihood.smoothed_log_prob(x, output, spread).sum()
        (slope,) = torch.autograd.grad(log_p, output, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), output)  # diagonal: each term has one pixel's output
        point = z.detach().requires_grad_()
        (prior_slope,) = torch.autograd.grad(model.prior.log_prob(point).sum(), point)
    weight = -curvature.flatten(1).clamp(max=0).unsqueeze(1)  # [B, 1, D]
    gradient = (jacobian @ slope.detach().flatten(1).unsqueeze(-1)).squeeze(-1) + prior_slope
    hessian = ((jacobian * weight) @ jacobian.mT).double() + model.prior.precision(z).double()
    return gradient.double(), torch.linalg.cholesky_ex(hessian)[0]
