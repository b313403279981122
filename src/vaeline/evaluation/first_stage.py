"""What a first stage for latent diffusion is judged by beside the bound: SSIM, and the scale of each channel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vaeline.core.estimators import gathered, pixel_batches, posterior_samples
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE, decoded
from vaeline.core.networks import Shape
from vaeline.io.npy import Pixels

WINDOW, SPREAD = 11, 1.5  # pixels: of the SSIM's Gaussian window
STABILISERS = (0.01**2, 0.03**2)  # of means and of variances, for pixels on [0, 1]


@torch.no_grad()
def mean_similarity(model: VAE, pixels: Pixels, compare: Callable[[Tensor, Tensor], Tensor] | None = None) -> Measured:
    """SSIM, or what else compares pairs of images, of pixels [N, C, H, W] and expected images at posterior means."""
    compare = compare or structural_similarity
    images = (model.likelihood.observe(batch, None) for _, batch in pixel_batches(model, pixels))
    return Measured.of(gathered((compare(x, decoded(model, model.encode(x).mean)) for x in images), len(pixels)))


@torch.no_grad()
def channel_report(model: VAE, latents: Shape, pixels: Pixels, seed: int) -> dict[str, dict[str, float]]:
    """By channel the mean and the standard deviation of z ~ q(z|x) over images and places; "scale" is 1 / the latter.

    `latents` are c, H / f, W / f; a diffusion model multiplies by the scale.
    """
    sums = torch.zeros(2, latents[0], dtype=torch.float64)
    for _, z in posterior_samples(model, pixels, seed):
        places = z.double().cpu().view(len(z), latents[0], -1)
        sums += torch.stack([places.sum((0, 2)), places.square().sum((0, 2))])
    means, squares = sums / (len(pixels) * latents[1] * latents[2])
    spreads = (squares - means.square()).clamp(min=1e-24).sqrt()
    return {
        str(channel): {"mean": float(mean), "standard_deviation": float(spread), "scale": 1 / float(spread)}
        for channel, (mean, spread) in enumerate(zip(means, spreads, strict=True))
    }


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """The mean SSIM of pairs of images with pixels on [0, 1]: [B, C, H, W] twice -> [B], at most 1.

    (2 m_x m_y + a)(2 s_xy + b) / ((m_x^2 + m_y^2 + a)(s_x^2 + s_y^2 + b)) over the places of a Gaussian window of 11
    pixels, or as many as the image has, that lies inside the image, and over the channels (Wang et al. 2004).
    """
    size = min(WINDOW, x.shape[2] - 1 + x.shape[2] % 2, x.shape[3] - 1 + x.shape[3] % 2)
    offsets = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
    line = torch.exp(-0.5 * (offsets / SPREAD).square())
    window = torch.outer(line, line) / line.sum().square()
    channels, (a, b) = x.shape[1], STABILISERS

    def blurred(images: Tensor) -> Tensor:
        return F.conv2d(images, window.expand(channels, 1, size, size), groups=channels)

    x, y = x.double(), y.double()
    mean_x, mean_y = blurred(x), blurred(y)
    variances = blurred(x.square()) - mean_x.square() + blurred(y.square()) - mean_y.square()
    covariance = blurred(x * y) - mean_x * mean_y
    ratio = (2 * mean_x * mean_y + a) * (2 * covariance + b)
    ratio /= (mean_x.square() + mean_y.square() + a) * (variances + b)
    return ratio.flatten(1).mean(1)
