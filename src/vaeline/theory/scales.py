"""Claims on scales: the posterior's log σ², the likelihood's σ, and that of the latents in latent diffusion."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vaeline import config
from vaeline.core.distributions import LARGEST_LOG_VARIANCE, LOG_VARIANCE_BOUND, DiagonalGaussian, bounded_log_variance
from vaeline.core.likelihoods import Gaussian
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.plotting.charts import INK, Picture, chart, charts, image_rows
from vaeline.theory import equations
from vaeline.theory.claim import Claim, Context
from vaeline.training.build import build_model, kl_sizes
from vaeline.training.splits import Splits, latent_scale

HEADS = ("log σ²", "σ", "softplus")
STEPS, BATCH, RATE = 250, 64, 3e-3
SMALL = config.Mlp(kind="mlp", hidden=[64], activation="silu")
SMALL_LATENTS = 10
LEAST_SIGMA = 1e-6  # in whose place a σ that is none is put, so that training can go on
SCALED, COLUMNS = 256, 10  # images that latents are scaled on, and that are shown
# Stable Diffusion's autoencoder (Rombach et al. 2022, arXiv:2112.10752: kl-f8), its public weights counted without the
# 1 x 1 convolutions at the latents
THEIRS: dict[str, Any] = {
    "shape": [3, 512, 512],
    "latents": [4, 64, 64],
    "factor": 8,
    "compression": 48.0,
    "encoder_parameters": 34_163_592,
    "decoder_parameters": 49_490_179,
    "scale_factor": 0.18215,
}
RAW = (-200.0, -110.0, -20.0, 0.0, 20.0, 200.0)


def log_variance(context: Context) -> Claim:
    """The same small model under the same steps, its encoder's numbers read in three ways."""
    traces = {head: train_head(context, head) for head in HEADS}
    steps = {head: int((invalid > 0).sum()) for head, (invalid, _) in traces.items()}
    first = int((traces["σ"][0] > 0).int().argmax()) + 1 if steps["σ"] else None
    title = "log σ² is any real number; σ is not"
    words = (
        f"A small MLP VAE on these images, {STEPS} steps of {BATCH} images, the same weights, batches and noise; only "
        "the reading of the encoder's second half differs, and all three start at σ ≈ 1. σ itself is not positive in "
        f"{steps['σ']} of {STEPS} steps"
        f"{f' (from step {first} on: log σ is then NaN)' if first else ''}; here {LEAST_SIGMA:g} takes its place.",
        "log σ² can be any real number, and so can what a network emits; softplus reaches 0 in float32 below about "
        f"-104, exp(raw) is infinite above 88.7. Here log σ² = b tanh(raw / b): the identity near 0; b = "
        f"{LOG_VARIANCE_BOUND:g} below it and {LARGEST_LOG_VARIANCE:g} above, as σ beyond the prior gains nothing.",
    )
    numbers: dict[str, Any] = {"steps": STEPS, "heads": {}, "first_invalid_step": first, "kl_of_raw": {}}
    rows = [("encoder emits", f"steps of {STEPS} with σ ≤ 0", "largest share of σ ≤ 0", "ELBO at the end, nats")]
    for head, (invalid, elbo) in traces.items():
        largest = float(invalid.max())
        shares = {"invalid_steps": steps[head], "largest_invalid_share": largest}
        numbers["heads"][head] = shares | elbo.numbers("elbo")
        rows.append((head, str(steps[head]), f"{largest:.1%}", elbo.text()))
    for head in (*HEADS, "log σ² unbounded"):
        values = _kl_values(head, torch.tensor(RAW)).tolist()
        numbers["kl_of_raw"][head] = {f"{raw:g}": value for raw, value in zip(RAW, values, strict=True)}
    captions = "The share of σ that are not positive.", "KL of a raw number; a line ends where it is infinite."
    pictures = charts("log_variance", captions, partial(_draw_heads, traces=traces))
    return Claim("log_variance", title, equations.LOG_VARIANCE, words, numbers, rows, pictures)


def read_head(raw: Tensor, head: str) -> tuple[Tensor, Tensor]:
    """log σ² and which σ are not positive, of raw numbers of any shape."""
    if head == "log σ²":
        return bounded_log_variance(raw), torch.zeros_like(raw, dtype=torch.bool)
    sigma = _sigma(raw, head)
    return 2 * torch.log(sigma.clamp(min=LEAST_SIGMA)), sigma <= 0


def _sigma(raw: Tensor, head: str) -> Tensor:
    return 1 + raw if head == "σ" else F.softplus(raw + math.log(math.e - 1))


def train_head(context: Context, head: str) -> tuple[Tensor, Measured]:
    """Adam on the ELBO of a small VAE whose encoder's second half is read as `head`.

    Returns the share of each batch's σ that are not positive, [steps], and the ELBO over the last fifth of the steps.
    """
    normal = config.StandardNormal(kind="standard-normal")
    section = context.section.model_copy(update={"network": SMALL, "latent_dim": SMALL_LATENTS, "prior": normal})
    model = build_model(section, context.model.shape, "elbo", context.options.seed).to(context.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    images = context.taken(context.train, STEPS * BATCH).pixels
    order = torch.randint(len(images), (STEPS, BATCH), generator=context.generator("heads"))
    noise = context.normal("heads noise", STEPS, BATCH, SMALL_LATENTS)
    invalid, bounds = [], []
    for step in range(STEPS):
        x = context.observed(images[order[step].numpy()], f"heads {step}", training=True)
        mean, raw = model.encoder(x).chunk(2, dim=1)
        log_of_variance, wrong = read_head(raw, head)
        posterior = DiagonalGaussian(mean, log_of_variance)
        reconstruction = model.likelihood.log_prob(x, model.decode(posterior.rsample(noise[step])))
        bound = reconstruction - posterior.kl_to_standard_normal().sum(1)
        optimiser.zero_grad()
        (-bound.mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
        invalid.append(wrong.float().mean())
        bounds.append(bound.detach().mean())
    return torch.stack(invalid).cpu(), Measured.of(torch.stack(bounds[-STEPS // 5 :]))


def _kl_values(head: str, raw: Tensor) -> Tensor:
    """KL of one dimension with mean 0, in float32."""
    if head.startswith("log σ²"):
        log_of_variance = bounded_log_variance(raw) if head == "log σ²" else raw
        return 0.5 * (torch.exp(log_of_variance) - 1 - log_of_variance)
    sigma = _sigma(raw, head)
    return 0.5 * (sigma.square() - 1) - torch.log(sigma)


def _draw_heads(left: Any, right: Any, traces: dict[str, tuple[Tensor, Measured]]) -> None:
    for head, (invalid, _) in traces.items():
        style = "--" if head == "softplus" else "-"
        left.plot(range(1, STEPS + 1), 100 * invalid.numpy(), style, label=head)
    left.set(xlabel="step", ylabel="% of σ not positive", title="The same steps, three readings")
    raw = torch.linspace(-150, 150, 3001)
    names = {"log σ²": "log σ², bounded", "log σ² unbounded": "log σ², not bounded"}
    for head in (*HEADS, "log σ² unbounded"):
        style, values = "--" if head == "log σ² unbounded" else "-", _kl_values(head, raw)
        values = torch.where(torch.isfinite(values), values, math.nan).clamp(min=1e-3)
        right.plot(raw.numpy(), values.numpy(), style, label=names.get(head, head), linewidth=1.4)
    right.set(yscale="log", ylim=(1e-2, 1e18), xlabel="the number that the network emits", ylabel="KL, nats")
    right.set_title("KL of one dimension, μ = 0, float32")
    left.legend()
    right.legend()


def squared_error(context: Context) -> Claim:
    """The Gaussian's log-density from the MSE alone, and its best σ beside the one that was learned."""
    title = "The mean squared error is a Gaussian likelihood, and the best σ² is the MSE"
    likelihood, whose = context.model.likelihood, "Of the trained model."
    if not isinstance(likelihood, Gaussian) or likelihood.truncated:
        small = {"network": SMALL, "latent_dim": SMALL_LATENTS, "likelihood": config.Gaussian(kind="gaussian")}
        whose = (
            f"The trained model's likelihood is another ({context.section.likelihood.kind}): of a small VAE with a "
            f"Gaussian one, trained on {min(len(context.train), context.options.training_images):,} of these images."
        )
        context = replace(context, model=context.trained(context.section.model_copy(update=small), "elbo"))
        likelihood = context.model.likelihood
        assert isinstance(likelihood, Gaussian)
    on_train, exact = _errors(context, context.taken(context.train, context.options.images * 10), "train")
    on_test, _ = _errors(context, context.taken(context.test, context.options.images), "test")
    sigma, best, best_test = float(likelihood.sigma), _root(on_train), _root(on_test)
    dimensions, how = math.prod(context.model.shape), "learned" if likelihood.learned else "fixed"
    weight = dimensions / (2 * sigma**2)
    words = (
        f"{whose} The likelihood's log-density and that from the MSE differ by at most {exact:.1e} of its size over "
        f"{len(on_train)} training images. So minimising the MSE, the mean over D = {dimensions:,} pixel values, is "
        "maximising a Gaussian likelihood whose σ was chosen, and with it the weight against the KL: D / (2σ²), "
        f"{weight:,.0f} here, for the mean; 1 / (2σ²) for the sum of squares.",
        f"σ is {sigma:.5f} ({how}); √MSE of the same images with z ~ q(z|x) is {best.text(5)}, of test images "
        f"{best_test.text(5)}, in pixels on [0, 1].",
    )
    numbers = {"sigma": sigma, "learned": likelihood.learned, "weight_of_mean_squared_error": weight}
    numbers |= best.numbers("root_mean_squared_error_train") | best_test.numbers("root_mean_squared_error_test")
    numbers["largest_relative_difference"] = exact
    caption = "The cost of a pixel as a function of σ: it is least at √MSE, where training puts a σ that is learned."

    def draw(axes: Any) -> None:
        low, high = sorted((best.value, sigma))
        sigmas = np.exp(np.linspace(math.log(low / 3), math.log(high * 3), 300))
        axes.plot(sigmas, best.value**2 / (2 * sigmas**2) + np.log(sigmas) + 0.5 * math.log(2 * math.pi))
        axes.axvline(best.value, color="C2", linewidth=3, alpha=0.5, label=f"√MSE = {best.value:.4f}")
        axes.axvline(sigma, color=INK, linestyle="--", linewidth=1, label=f"σ = {sigma:.4f}, {how}")
        labels = {"xlabel": "σ, pixels on [0, 1]", "ylabel": "-log p(x|z) a pixel, nats"}
        axes.set(title="Cost of a pixel", **labels)
        axes.legend()

    picture = chart("squared_error", caption, draw)
    return Claim("squared_error", title, equations.SQUARED_ERROR, words, numbers, pictures=(picture,))


@torch.no_grad()
def _errors(context: Context, images: Any, stream: str) -> tuple[Tensor, float]:
    """Each image's squared error per pixel at one z ~ q(z|x), [N], and how far the density is from that of the MSE."""
    model, errors, largest = context.model, [], 0.0
    sigma, dimensions = model.likelihood.sigma, math.prod(model.shape)
    assert sigma is not None
    for start in range(0, len(images), 500):
        x = context.observed(images.pixels[start : start + 500], f"{stream} {start}", training=stream == "train")
        posterior = model.encode(x)
        noise = context.normal(f"{stream} {start}", *posterior.mean.shape)
        output = model.decode(posterior.mean if model.deterministic else posterior.rsample(noise))
        mse = (output - x).double().square().flatten(1).mean(1)  # [B]
        log_sigma = sigma.double().log()
        by_mse = -dimensions * (mse / (2 * torch.exp(2 * log_sigma)) + log_sigma + 0.5 * math.log(2 * math.pi))
        by_density = model.likelihood.log_prob(x, output).double()
        largest = max(largest, float(((by_density - by_mse).abs() / by_mse.abs().clamp(min=1)).max()))
        errors.append(mse.cpu())
    return torch.cat(errors), largest


def _root(errors: Tensor) -> Measured:
    """Square root of the mean, and its standard error to first order."""
    mean = Measured.of(errors)
    value = math.sqrt(mean.value)
    return Measured(value, mean.se / (2 * value))


def latent_diffusion(context: Context) -> Claim:
    """Stable Diffusion's autoencoder beside a trained one of its kind, whose latents and their scale are measured."""
    title = "Stable Diffusion's first stage is a VAE of the same components"
    network, numbers = context.section.network, dict[str, Any](stable_diffusion=THEIRS)
    words = [
        "Its encoder gives a mean and a log σ² at each place of a smaller picture; the posterior, its sample, the KL "
        "and the bound are those of every other section. Latents keep their places. It is trained with a perceptual "
        "and an adversarial loss beside the reconstruction's, and with a very small weight of the KL.",
        "Here it is `model.network.kind: autoencoder-kl`, the same code (diffusers' AutoencoderKL) at any widths: "
        "`vaeline export --format diffusers` writes a trained one as diffusers reads it, and "
        "`examples/latent_diffusion.py` draws new images by a diffusion model on its latents (README has a picture).",
    ]
    header = ("image", "f", "latents", "numbers, image / latents", "encoder's parameters", "decoder's", "scale factor")
    rows, pictures = [_row(THEIRS)], []
    if isinstance(network, config.AutoencoderKl):
        model, shape = copy.deepcopy(context.model), context.model.shape
        latents = kl_sizes(network).latents(shape)
        some = context.train.take(2 * SCALED, context.options.seed).pixels
        splits = (Splits(part, part, context.binarise) for part in np.array_split(some, 2))
        (_, scale), (_, other) = (latent_scale(model, each, context.options.seed, context.device) for each in splits)
        spread = (scale / other) ** 2  # of other images' latents times the first ones' scale
        words.append(
            "A diffusion model wants latents of variance 1: stage train writes their mean and 1 / std(z), over the "
            f"training images, into models/config.json. 1 / std(z) is {scale:.4f} here, 0.18215 in Stable Diffusion; "
            f"the variance of other images' scaled latents is {spread:.4f}."
        )
        here: dict[str, Any] = {
            "shape": list(shape),
            "latents": list(latents),
            "factor": shape[1] // latents[1],
            "compression": math.prod(shape) / math.prod(latents),
            "encoder_parameters": _parameters(model.encoder),
            "decoder_parameters": _parameters(model.decoder),
            "scale_factor": scale,
            "scaled_variance": spread,
        }
        numbers["here"] = here
        rows, pictures = [_row(here), *rows], [_maps(context, model, here["latents"], here["factor"])]
    return Claim("latent_diffusion", title, equations.LATENT_DIFFUSION, words, numbers, (header, *rows), pictures)


def _parameters(part: torch.nn.Module) -> int:
    return sum(p.numel() for p in part.get_submodule("network").parameters())


def _row(sizes: dict[str, Any]) -> tuple[str, ...]:
    shape, latents, f, compression, encoder, decoder, scale = list(sizes.values())[:7]
    image, latents = " × ".join(map(str, shape)), " × ".join(map(str, latents))
    return image, str(f), latents, f"{compression:.1f}", f"{encoder:,}", f"{decoder:,}", f"{scale:.4g}"


@torch.no_grad()
def _maps(context: Context, model: VAE, latents: list[int], factor: int) -> Picture:
    """Test images above the channels of their latents, each latent as large as the pixels it stands for."""
    x = context.tested(COLUMNS).cpu()
    means = model.encode(x).mean.view(-1, *latents)  # [N, c, H / f, W / f]
    low, high = means.amin((0, 2, 3), keepdim=True), means.amax((0, 2, 3), keepdim=True)
    grey = ((means - low) / (high - low)).nan_to_num(0.5)
    large = grey.repeat_interleave(factor, 2).repeat_interleave(factor, 3)  # [N, c, H, W]
    rows = [(f"latents, channel {i}", part.expand_as(x)) for i, part in enumerate(torch.split(large, 1, dim=1), 1)]
    caption = "Latents keep their places: posterior means, each channel from its least (black) to its greatest value."
    return image_rows("latents", caption, "Images and their latents", [("test images", x), *rows])
