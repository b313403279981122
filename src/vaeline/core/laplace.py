"""The Laplace approximation of p(z|x), image by image: a proposal for importance sampling that covers the posterior."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.core.model import VAE
from vaeline.core.objectives import conditional_log_likelihood

STEPS = 8  # of Gauss and Newton
STEP_SIZES = (0.0, 0.125, 0.25, 0.5, 1.0)  # tried at each, the best taken
DEGREES = 8  # of freedom of Student's t: tails heavier than the posterior's keep the weights' variance finite


@dataclass(frozen=True)
class StudentT:
    """Multivariate Student t over the last axis, with `DEGREES` degrees of freedom."""

    mode: Tensor  # [B, Z]
    precision_factor: Tensor  # C [B, Z, Z], lower triangular: C C^T is the inverse of the squared scale

    def sample(self, normal: Tensor, chi_squared: Tensor) -> Tensor:
        """mode + C^-T normal sqrt(DEGREES / chi_squared): [K, B, Z], [K, B] -> [K, B, Z]."""
        scaled = normal * (DEGREES / chi_squared).sqrt().unsqueeze(-1)
        columns = scaled.permute(1, 2, 0).to(self.precision_factor)  # [B, Z, K]
        offsets = torch.linalg.solve_triangular(self.precision_factor.mT, columns, upper=True)
        return (self.mode + offsets.permute(2, 0, 1)).to(normal)

    def log_prob(self, z: Tensor) -> Tensor:
        """[K, B, Z] -> [K, B]."""
        factor, size = self.precision_factor, z.shape[-1]
        squares = ((z.to(factor) - self.mode).unsqueeze(-2) @ factor).square().sum((-2, -1))  # [K, B]
        constant = (
            math.lgamma((DEGREES + size) / 2) - math.lgamma(DEGREES / 2) - size / 2 * math.log(DEGREES * math.pi)
        )
        log_determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant + log_determinant - (DEGREES + size) / 2 * torch.log1p(squares / DEGREES)


@torch.no_grad()
def laplace_proposal(model: VAE, x: Tensor) -> StudentT:
    """Student t at the mode of p(z|x), scaled by the curvature there: x [B, C, H, W] in data space.

    From the encoder's mean, Gauss-Newton steps z + t H^-1 g, t the best of STEP_SIZES, with g the gradient of
    log p(x, z), J the decoder's Jacobian and H = J^T W J + P: W >= 0 is minus the second derivative of log p(x|z) in
    the decoder's output, P > 0 the prior's precision. At a Gaussian likelihood H = I + J^T J / sigma^2.
    """
    z = model.encode(x).mean
    sizes = z.new_tensor(STEP_SIZES).view(-1, 1, 1)
    for _ in range(STEPS):
        gradient, precision = _expand(model, x, z)
        factor, _ = torch.linalg.cholesky_ex(precision)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1).to(z)
        candidates = z + sizes * step  # [T, B, Z]
        values = conditional_log_likelihood(model, x, candidates) + model.prior.log_prob(candidates)
        best = values.nan_to_num(-math.inf).argmax(0)
        z = candidates[best, torch.arange(len(z), device=z.device)]
    _, precision = _expand(model, x, z)
    return StudentT(z.double(), torch.linalg.cholesky_ex(precision)[0])


def _expand(model: VAE, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [B, Z] of log p(x, z) in z, and its Gauss-Newton precision [B, Z, Z], float64."""
    basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, *z.shape)  # [Z, B, Z]
    output, jacobian = torch.func.vmap(
        lambda tangent: torch.func.jvp(model.decode, (z,), (tangent,)), out_dims=(None, 0)
    )(basis)
    jacobian = jacobian.flatten(2).transpose(0, 1)  # [B, Z, D]
    with torch.enable_grad():
        output = output.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model.likelihood.log_prob(x, output).sum(), output, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), output)  # diagonal: a pixel's term has one output
        point = z.detach().requires_grad_()
        (prior_slope,) = torch.autograd.grad(model.prior.log_prob(point).sum(), point)
    weight = -curvature.flatten(1).clamp(max=0).unsqueeze(1)  # [B, 1, D]
    gradient = (jacobian @ slope.detach().flatten(1).unsqueeze(-1)).squeeze(-1) + prior_slope
    precision = (jacobian * weight) @ jacobian.mT
    return gradient.double(), precision.double() + torch.diag_embed(model.prior.precision(z).double())
