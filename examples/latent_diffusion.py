"""Train a small diffusion model on the latents of a registered first stage, and draw new images through its decoder.

    vaeline experiment kl-f4-shapes
    python examples/latent_diffusion.py models:/vaeline-kl-f4-shapes@champion data/prepared/train.npy

IMAGES is an array of uint8 [N, C, H, W], such as stage prepare writes. The first stage goes through its export to
diffusers, whose UNet2DModel learns to remove noise from its scaled latents (Ho et al. 2020, arXiv:2006.11239; Rombach
et al. 2022, arXiv:2112.10752). The picture shows images, their reconstructions, and samples below.
Minutes on two cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vaeline
from vaeline.errors import UserError
from vaeline.serving.diffusers_export import export_diffusers

COLUMNS, SAMPLE_ROWS, EDGE = 12, 4, 64  # of the picture; pixels of an image there
BATCH, RATE, AVERAGE, DRAW_STEPS = 64, 2e-3, 0.995, 50


def main() -> None:
    """Train, draw, write a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("latent_diffusion.png"))
    options = parser.parse_args()
    try:
        first_stage, images = exported(options.model), np.load(options.images, allow_pickle=False)
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    torch.manual_seed(options.seed)
    latents = encode(first_stage, images)
    print(f"{len(latents)} latents {tuple(latents.shape[1:])}: mean {latents.mean():+.3f}, std {latents.std():.3f}")
    unet = train(latents, options.steps)
    sampled = decode(first_stage, draw(unet, COLUMNS * SAMPLE_ROWS, latents[0].shape))
    shown = torch.from_numpy(images[:COLUMNS]) / 255
    write_picture([shown, decode(first_stage, latents[:COLUMNS]), *sampled.split(COLUMNS)], options.picture)
    print(f"{options.picture}: images, their reconstructions, and {len(sampled)} samples")


def exported(uri: str) -> AutoencoderKL:
    """The model as diffusers loads it."""
    with tempfile.TemporaryDirectory() as folder:
        export_diffusers(vaeline.load(uri).loaded, Path(folder))
        return AutoencoderKL.from_pretrained(folder).requires_grad_(False).eval()


@torch.no_grad()
def encode(first_stage: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Samples of the posteriors, shifted and scaled to mean 0 and variance 1: [N, c, H / f, W / f]."""
    parts = [first_stage.encode(part / 127.5 - 1).latent_dist.sample() for part in torch.from_numpy(images).split(100)]
    config = first_stage.config
    return (torch.cat(parts) - (config.shift_factor or 0.0)) * config.scaling_factor


@torch.no_grad()
def decode(first_stage: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels on [0, 1]: [N, C, H, W]."""
    config = first_stage.config
    z = latents / config.scaling_factor + (config.shift_factor or 0.0)
    return (first_stage.decode(z).sample / 2 + 0.5).clamp(0, 1)


def train(latents: Tensor, steps: int) -> UNet2DModel:
    """A network that predicts the noise in noisy latents, with the average of its weights over the steps."""
    unet = UNet2DModel(
        sample_size=latents.shape[-1],
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimiser = torch.optim.AdamW(unet.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for step in range(1, steps + 1):
        clean = latents[torch.randint(len(latents), (BATCH,))]
        noise, times = torch.randn_like(clean), torch.randint(schedule.config.num_train_timesteps, (BATCH,))
        loss = F.mse_loss(unet(schedule.add_noise(clean, noise, times), times).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        rates.step()
        average.update_parameters(unet)
        if step % 500 == 0 or step == steps:
            print(f"step {step} of {steps}: squared error of the noise {loss.item():.4f}", flush=True)
    return average.module.eval()


@torch.no_grad()
def draw(unet: UNet2DModel, count: int, shape: torch.Size) -> Tensor:
    """Latents from noise, by DDIM (Song et al. 2021, arXiv:2010.02502): [count, *shape]."""
    schedule, z = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False), torch.randn(count, *shape)
    schedule.set_timesteps(DRAW_STEPS)
    for time in schedule.timesteps:
        z = schedule.step(unet(z, time).sample, time, z).prev_sample
    return z


def write_picture(rows: list[Tensor], path: Path) -> None:
    """A sheet of rows of images [N, C, H, W], pixels on [0, 1], a white line between them."""
    framed = [F.pad(row, (1, 1, 1, 1), value=1.0) for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in framed], dim=1)  # [C, rows (H + 2), N (W + 2)]
    times = max(1, EDGE // rows[0].shape[2])
    pixels = sheet.mul(255).round().byte().permute(1, 2, 0).numpy().repeat(times, 0).repeat(times, 1)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


if __name__ == "__main__":
    main()
