"""Claim: the same components are the first stage of latent diffusion."""

import copy
import math
from typing import Any

import torch

from vaeline import config
from vaeline.core.model import VAE
from vaeline.core.networks import Shape, latent_shape
from vaeline.plotting.charts import Picture, image_rows
from vaeline.theory.claim import Claim
from vaeline.theory.context import Context
from vaeline.training.build import build_model
from vaeline.training.splits import Splits, scale_factor

SMALL_CHANNELS = (16, 32, 64, 64)  # as many of them as the image can be halved
IMAGES, COLUMNS = 256, 10
# Rombach et al. 2022 (arXiv:2112.10752): f = 8, four latent channels, images of 512 x 512
LARGE = config.Residual(kind="residual", channels=[128, 256, 512, 512], latent_channels=4, blocks=2)
LARGE_SHAPE = (3, 512, 512)


def latent_diffusion(context: Context) -> Claim:
    """The residual network at two sizes, and the scale that a diffusion model wants of its latents."""
    network = context.section.network
    if isinstance(network, config.Residual):
        which, model = "the trained model", copy.deepcopy(context.model)
    else:
        which, network = "untrained here: only its shapes matter", small(context.model.shape)
        model = _model(network, context.model.shape)
    with torch.device("meta"):  # sizes, no numbers
        large = _sizes(LARGE, _model(LARGE, LARGE_SHAPE))
    here = _sizes(network, model)
    parts = (context.train.take(IMAGES, context.options.seed + n, in_order=True).pixels for n in (0, 1))
    splits = (Splits(part, part, context.binarise) for part in parts)
    scale, other = (scale_factor(model, split, context.options.seed, context.device) for split in splits)
    spread = (scale / other) ** 2  # of other images' latents times the first ones' scale
    title = "The same components make up Stable Diffusion's autoencoder"
    equation = "x [C, H, W] → z [c, H/f, W/f],   f = 2^(n-1) for n channel counts,   scale = 1 / std(z)"
    words = (
        f"The encoder, the Gaussian posterior, the reparameterised sample and the KL (with a small weight there) are "
        f"those of every other section; only the network is convolutional and the latents keep their places. First "
        f"row: this package's residual network on images like these ({which}). Second: the same code at the "
        "widths of Stable Diffusion's autoencoder, without its attention layers.",
        f"Scale: a diffusion model wants latents of variance 1, so they are multiplied by 1 / std(z), measured over "
        f"the training images: {scale:.4f} here, 0.18215 in Stable Diffusion; the variance of the scaled latents is "
        f"{spread:.4f}. Stage train writes it into models/config.json of every model with this network.",
    )
    numbers = {"here": here | {"scale_factor": scale, "scaled_variance": spread}, "stable_diffusion_size": large}
    header = ("image", "f", "latents", "numbers, image / latents", "encoder's parameters", "decoder's", "scale factor")
    rows = (_row(here, f"{scale:.4f}"), _row(large, "(theirs: 0.18215)"))
    pictures = (_maps(context, model, here["latents"], here["factor"]),)
    return Claim("latent_diffusion", title, equation, words, numbers, (header, *rows), pictures)


def small(shape: Shape) -> config.Residual:
    """As many halvings as the image allows, at most three."""
    halvings = max(n for n in range(len(SMALL_CHANNELS)) if shape[1] % 2**n == 0 and shape[2] % 2**n == 0)
    return config.Residual(kind="residual", channels=list(SMALL_CHANNELS[: halvings + 1]), latent_channels=4, blocks=1)


def _model(network: config.Residual, shape: Shape) -> VAE:
    dimensions = math.prod(latent_shape(shape, network.channels, network.latent_channels))
    section = {"latent_dim": dimensions, "network": network, "likelihood": {"kind": "gaussian"}}
    return build_model(config.Model.model_validate(section), shape, "elbo", seed=0).requires_grad_(False)


def _sizes(network: config.Residual, model: VAE) -> dict[str, Any]:
    """Shapes and parameter counts, as theory.json has them."""
    latents = latent_shape(model.shape, network.channels, network.latent_channels)
    return {
        "shape": list(model.shape),
        "latents": list(latents),
        "factor": model.shape[1] // latents[1],
        "compression": math.prod(model.shape) / math.prod(latents),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "decoder_parameters": sum(p.numel() for p in model.decoder.parameters()),
    }


def _row(sizes: dict[str, Any], scale: str) -> tuple[str, ...]:
    shape, latents, f, compression, encoder, decoder = sizes.values()
    image, latents = " × ".join(map(str, shape)), " × ".join(map(str, latents))
    return image, str(f), latents, f"{compression:.1f}", f"{encoder:,}", f"{decoder:,}", scale


@torch.no_grad()
def _maps(context: Context, model: VAE, latents: list[int], factor: int) -> Picture:
    """Test images above the channels of their latents, each latent as large as the pixels it stands for."""
    x = context.tested(COLUMNS)[1].cpu()
    means = model.encode(x).mean.view(-1, *latents)  # [N, c, H / f, W / f]
    low, high = means.amin((0, 2, 3), keepdim=True), means.amax((0, 2, 3), keepdim=True)
    grey = ((means - low) / (high - low)).nan_to_num(0.5)
    large = grey.repeat_interleave(factor, 2).repeat_interleave(factor, 3)  # [N, c, H, W]
    rows = [(f"latents, channel {i}", part.expand_as(x)) for i, part in enumerate(torch.split(large, 1, dim=1), 1)]
    caption = "Latents keep their places: posterior means, each channel from its least (black) to its greatest value."
    return image_rows("latents", caption, "Images and their latents", [("test images", x), *rows])
