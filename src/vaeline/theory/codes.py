"""Claim: an autoencoder's codes lie anywhere, a VAE's latent space is a distribution that can be sampled."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaeline import config
from vaeline.core import sampling
from vaeline.core.model import VAE
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import probes
from vaeline.plotting.charts import INK, Picture, chart, image_rows
from vaeline.theory.claim import Claim, Table
from vaeline.theory.context import Context
from vaeline.training import checkpoint
from vaeline.training.settings import Settings
from vaeline.training.splits import Splits
from vaeline.training.trainer import train

BATCH, RATE, VALIDATION = 100, 2e-3, 500
COLUMNS, SHOWN_PAIRS = 10, 2
COMPARED = 2000  # images in a Frechet distance, and codes in a distance to the nearest
COMPONENTS = 50  # of the pixels, where there are no labels to learn features from


@dataclass(frozen=True)
class Coded:
    """A model with the codes of training images and of as many held-out ones."""

    model: VAE
    train_codes: Tensor  # [N, Z]: z ~ q(z|x), for an autoencoder the code itself
    held_out: Tensor  # [M, Z]
    train_means: Tensor
    held_out_means: Tensor


@dataclass(frozen=True)
class Samples:
    """A way to draw latents of a model, and what came of it."""

    name: str
    images: Tensor  # [M, C, H, W]
    frechet: float
    hole: float  # median distance of draws to the nearest code, over that of held-out codes
    reach: float  # median distance of held-out codes to the nearest draw, over that to the nearest code


def latent_space(context: Context) -> Claim:
    """A plain autoencoder and a VAE of the trained model's shape, trained briefly alike, sampled alike."""
    data = context.taken(context.train, context.options.training_images)
    models = {name: _trained(context, data, kind) for name, kind in (("VAE", "elbo"), ("AE", "autoencoder"))}
    test = context.taken(context.test, COMPARED)
    coded = {name: _coded(context, model, data, test, name) for name, model in models.items()}
    features, kind = _features(context, data)
    real = features(_expected(context, test.pixels))
    found = [
        _sampled(coded[name], f"{name}, {how}", draw, features, real) for name, how, draw in _draws(coded, context)
    ]
    floor = features(_expected(context, context.taken(context.validation, len(test)).pixels))
    distances = {
        "held-out images": probes.frechet_distance(floor, real),
        **{f"{name}, reconstructions": _reconstructed(c, features, real) for name, c in coded.items()},
        **{f"{name}, midpoints": _midpoints(c, features, real) for name, c in coded.items()},
    }
    if not context.model.deterministic:
        z = context.model.prior.sample(context.normal("trained prior", len(test), context.model.latent_dim))
        distances["trained model, its prior"] = probes.frechet_distance(features(_decoded(context.model, z)), real)
    accuracy = {name: _neighbours(c, data, test) for name, c in coded.items()}
    words = _words(context, data, found=found, distances=distances, accuracy=accuracy, kind=kind)
    numbers = {
        "training_images": len(data),
        "epochs": context.options.epochs,
        "compared": len(test),
        "frechet_features": kind,
        "samples": {s.name: {"frechet": s.frechet, "hole": s.hole, "reach": s.reach} for s in found},
        "frechet": distances,
        **({f"knn_accuracy_{name.lower()}": value for name, value in accuracy.items() if value is not None}),
    }
    rows = [(s.name, f"{s.frechet:.2f}", f"{s.hole:.2f}", f"{s.reach:.2f}") for s in found]
    rows += [(name, f"{value:.2f}", "", "") for name, value in distances.items()]
    table = Table(("images from", "Frechet distance to test images", "hole", "reach"), tuple(rows))
    equation = (
        "AE:   max log p(x|z = f(x))                              nothing says where the codes f(x) lie\n"
        "VAE:  max E_q[log p(x|z)] - KL(q(z|x) ‖ N(0, I))         the codes, all together, fill N(0, I)"
    )
    title = "An autoencoder's code has no meaning by itself; a VAE's latent space is a distribution"
    shown = (_sample_sheet(context, found, test), _path_sheet(context, coded, test), _scatter(coded))
    return Claim("sampling", title, equation, words, numbers, table, shown)


def _words(
    context: Context,
    data: Split,
    *,
    found: list[Samples],
    distances: dict[str, float],
    accuracy: dict[str, float | None],
    kind: str,
) -> tuple[str, ...]:
    vae, plain, vae_fitted, fitted = found
    nearer, other = ("VAE", "autoencoder") if vae_fitted.frechet < fitted.frechet else ("autoencoder", "VAE")
    midway = {name: distances[f"{name}, midpoints"] / distances[f"{name}, reconstructions"] for name in ("VAE", "AE")}
    words = [
        f"Both have the trained model's shape and were trained alike: {len(data):,} images, {context.options.epochs} "
        "epochs, the same batches. The VAE of this section is not the trained model: it is as briefly trained as the "
        "autoencoder.",
        f"Decoded N(0, I): Frechet distance {vae.frechet:.2f} for the VAE, {plain.frechet:.2f} for the autoencoder, "
        f"whose codes nobody asked to be there (held-out images: {distances['held-out images']:.2f}). Whoever measures "
        "the codes afterwards and draws from a Gaussian with their mean and covariance, N(m, S), makes a model of an "
        f"autoencoder too (Ghosh et al. 2020, arXiv:1903.12436): {fitted.frechet:.2f}, and {vae_fitted.frechet:.2f} "
        f"for the VAE. By this measure the {nearer} then stands before the {other}. Features: {kind}.",
        "Hole: how far a draw is from the nearest code of a training image, over how far a held-out code is; 1 where "
        f"draws lie where codes lie. N(0, I): {vae.hole:.2f} for the VAE, {plain.hole:.2f} for the autoencoder; N(m, S)"
        f" of its codes: {fitted.hole:.2f}. Reach: how far a held-out code is from the nearest draw, over how far from "
        f"the nearest code; large where draws never come: {vae.reach:.2f}, {plain.reach:.2f} and {fitted.reach:.2f}. "
        "Only a distribution of codes has both near 1; the VAE's are not quite N(0, I) either: see its N(m, S).",
        "Half-way between the codes of two test images the Frechet distance is that of reconstructions times "
        f"{midway['VAE']:.1f} for the VAE, {midway['AE']:.1f} for the autoencoder.",
    ]
    if accuracy["VAE"] is not None and accuracy["AE"] is not None:
        words.append(
            f"k-NN accuracy on the codes' means: {accuracy['VAE']:.1%} for the VAE, {accuracy['AE']:.1%} for the "
            "autoencoder. What an autoencoder lacks is not information in the code: it is a distribution of codes."
        )
    return tuple(words)


def _trained(context: Context, data: Split, objective: str) -> VAE:
    """By the training library, on the same images in the same order."""
    normal = config.StandardNormal(kind="standard-normal")
    options = config.Train.model_validate(
        {
            "objective": objective,
            "beta": 1.0,
            "warmup_epochs": 0,
            "free_bits": 0.0,
            "epochs": context.options.epochs,
            "batch_size": BATCH,
            "learning_rate": RATE,
            "gradient_clip": 100.0,
            "patience": context.options.epochs,
            "seed": context.options.seed,
        }
    )
    splits = Splits(data.pixels, context.taken(context.validation, VALIDATION).pixels, context.binarise)
    section = context.section.model_copy(update={"prior": normal})
    settings = Settings(checkpoint_seconds=1e9, log_every=2**31)
    with tempfile.TemporaryDirectory(prefix="vaeline-theory-") as folder, checkpoint.owned(Path(folder) / "run"):
        place = Path(folder) / "run"
        result = train(section, options, splits, device=context.device, checkpoints=place, settings=settings)
    return result.model.requires_grad_(False).eval().to(context.device)


@torch.no_grad()
def _coded(context: Context, model: VAE, data: Split, test: Split, name: str) -> Coded:
    codes, means = [], []
    for split, images, training in (("train", data, True), ("test", test, False)):
        parts = [model.encode(x) for x in _batches(context, images.pixels, f"codes {split}", training=training)]
        mean = torch.cat([part.mean for part in parts])
        spread = torch.exp(0.5 * torch.cat([part.log_variance for part in parts]))
        noise = context.normal(f"codes {name} {split}", *mean.shape)
        means.append(mean.cpu())
        codes.append((mean if model.deterministic else mean + spread * noise).cpu())
    return Coded(model, codes[0], codes[1], means[0], means[1])


def _draws(coded: dict[str, Coded], context: Context) -> list[tuple[str, str, Tensor]]:
    """N(0, I) for both, and for both the Gaussian with their codes' mean and covariance."""
    noise = context.normal("draws", *coded["AE"].held_out.shape).cpu()
    plain = [(name, "N(0, I)", noise) for name in coded]
    return plain + [(name, "N(m, S) of its codes", fitted(c.train_codes, noise)) for name, c in coded.items()]


def fitted(codes: Tensor, noise: Tensor) -> Tensor:
    """Draws of the Gaussian with the mean and the covariance of codes [N, Z], from standard normal noise [M, Z]."""
    values, vectors = torch.linalg.eigh(torch.cov(codes.double().T).reshape(codes.shape[1], -1))
    root: Tensor = (vectors * values.clamp(min=0).sqrt() @ vectors.T).to(noise)
    return codes.mean(0) + noise @ root


def _sampled(coded: Coded, name: str, z: Tensor, features: Callable[[Tensor], Tensor], real: Tensor) -> Samples:
    images = _decoded(coded.model, z)
    codes = coded.train_codes[: len(z)]
    usual = _nearest(coded.held_out, codes)
    return Samples(
        name,
        images,
        probes.frechet_distance(features(images), real),
        hole=_nearest(z, codes) / usual,
        reach=_nearest(coded.held_out, z) / usual,
    )


def _nearest(points: Tensor, among: Tensor) -> float:
    """The median distance of points [N, Z] to the nearest of others [M, Z]."""
    return float(torch.cat([torch.cdist(p, among).min(1).values for p in torch.split(points, 500)]).median())


@torch.no_grad()
def _decoded(model: VAE, z: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([sampling.decoded(model, part.to(device)).cpu() for part in torch.split(z, 500)])


def _batches(context: Context, pixels: np.ndarray[Any, Any], stream: str, *, training: bool = False) -> list[Tensor]:
    starts = range(0, len(pixels), 500)
    return [context.observed(pixels[s : s + 500], f"{stream} {s}", training=training) for s in starts]


def _expected(context: Context, pixels: np.ndarray[Any, Any]) -> Tensor:
    """Split as a model is to draw them, pixels on [0, 1]: grey values at the middle of their bins."""
    return torch.cat([context.model.likelihood.observe(torch.from_numpy(part), None) for part in _cut(pixels)])


def _cut(pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return [pixels[start : start + 500] for start in range(0, len(pixels), 500)]


def _features(context: Context, data: Split) -> tuple[Callable[[Tensor], Tensor], str]:
    """What a Frechet distance is taken of: a classifier's features, or principal components without labels."""
    seed = context.options.seed
    images = torch.cat([probes.shrink(x.cpu()) for x in _batches(context, data.pixels, "features", training=True)])

    def small(x: Tensor) -> Tensor:
        """Binary where the images are: an expected image is then drawn from."""
        if context.model.likelihood.measure == "binary":
            x = (torch.rand(x.shape, generator=context.generator("binary")) < x).float()
        return probes.shrink(x)

    if data.labels is not None:
        classifier = probes.train_classifier(images, torch.from_numpy(data.labels), seed)
        return lambda x: probes.classifier_features(classifier, small(x)), "of a small classifier trained here"
    mean, axes = probes.principal_components(images.flatten(1), COMPONENTS)
    return lambda x: (small(x).flatten(1) - mean) @ axes, f"{axes.shape[1]} principal components of the pixels"


def _reconstructed(coded: Coded, features: Callable[[Tensor], Tensor], real: Tensor) -> float:
    return probes.frechet_distance(features(_decoded(coded.model, coded.held_out_means)), real)


def _midpoints(coded: Coded, features: Callable[[Tensor], Tensor], real: Tensor) -> float:
    """Of images half-way between the means of two test images."""
    halfway = (coded.held_out_means + coded.held_out_means.roll(1, 0)) / 2
    return probes.frechet_distance(features(_decoded(coded.model, halfway)), real)


def _neighbours(coded: Coded, data: Split, test: Split) -> float | None:
    if data.labels is None or test.labels is None:
        return None
    predicted = probes.knn_predict(coded.train_means, torch.from_numpy(data.labels), coded.held_out_means)
    return float((predicted == torch.from_numpy(test.labels)).double().mean())


def _sample_sheet(context: Context, found: list[Samples], test: Split) -> Picture:
    rows = [("test images", _expected(context, test.pixels[:COLUMNS]))]
    rows += [(s.name, part) for s in found for part in torch.split(s.images[:COLUMNS], COLUMNS)]
    caption = "The same noise, decoded. The VAE was trained so that N(0, I) is where its codes are."
    return image_rows("samples", caption, "Decoded draws", rows)


def _path_sheet(context: Context, coded: dict[str, Coded], test: Split) -> Picture:
    rows = []
    for pair in range(SHOWN_PAIRS):
        x = context.observed(test.pixels[2 * pair : 2 * pair + 2], f"pair {pair}")
        rows += [(name, sampling.interpolate(c.model, x, COLUMNS)) for name, c in coded.items()]
    caption = "Two pairs of test images: the straight line between their codes, decoded."
    return image_rows("interpolations", caption, "Interpolations", rows)


def _scatter(coded: dict[str, Coded]) -> Picture:
    """The two widest principal directions of the codes, with N(0, I) drawn as circles."""

    def panel(name: str, c: Coded) -> Callable[[Any], None]:
        directions = probes.principal_components(c.train_codes, 2)[1]
        flat = ((c.train_codes[:1500]) @ directions).numpy()

        def draw(axes: Any) -> None:
            axes.plot(flat[:, 0], flat[:, -1], ".", markersize=2, alpha=0.5)
            angle = np.linspace(0, 2 * np.pi, 200)
            for radius in (1, 2, 3):
                axes.plot(radius * np.cos(angle), radius * np.sin(angle), color=INK, linewidth=0.9)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set(title=f"{name}: codes", xlabel="first principal direction", ylabel="second")

        return draw

    caption = "Codes of training images (dots) and N(0, I) at one, two and three standard deviations (circles)."
    return chart("codes", caption, *(panel(name, c) for name, c in coded.items()))
