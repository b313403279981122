"""p(z) families."""

import math

from torch import Tensor, nn

from vaeline.core.distributions import DiagonalGaussian


class StandardNormal(nn.Module):
    """p(z) = N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; 0, I) in nats: [..., Z] -> [...]."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, posterior: DiagonalGaussian) -> Tensor:
        """KL(posterior || p) in nats, for each dimension, in closed form: [B, Z]."""
        return posterior.kl_to_standard_normal()

    def sample(self, noise: Tensor) -> Tensor:
        """Samples of p(z) from standard normal `noise` [..., Z]: here the noise itself."""
        return noise
