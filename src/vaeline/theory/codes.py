"""Claim: a VAE's codes come with a prior to sample from, roughly theirs; an autoencoder's lie anywhere."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaeline.core.model import VAE, decoded, interpolate
from vaeline.data.sources.dataset import Split
from vaeline.evaluation import probes
from vaeline.io.npy import Pixels
from vaeline.plotting.charts import INK, Picture, chart, charts, image_rows
from vaeline.theory import equations
from vaeline.theory.claim import Claim, Context

COLUMNS, SHOWN_PAIRS = 10, 2
ROWS = 500  # images at once
COMPARED = 2000  # images in a Frechet distance, and codes in a distance to the nearest
SIZES = (1, 2, 3, 5, 10, 20, 50, 100, 200)  # of a code
MIXED = {  # weights of three images
    "first": (1, 0, 0),
    "second": (0, 1, 0),
    "third": (0, 0, 1),
    "1 + 2": (0.5, 0.5, 0),
    "1 + 3": (0.5, 0, 0.5),
    "2 + 3": (0, 0.5, 0.5),
    "all": (1 / 3, 1 / 3, 1 / 3),
}
COMPONENTS = 50  # of the pixels, where there are no labels to learn features from


@dataclass(frozen=True)
class Coded:
    """A model, and codes of training images [N, Z] and of as many held-out ones [M, Z]."""

    model: VAE
    train_codes: Tensor  # z ~ q(z|x), for an autoencoder the code itself
    train_means: Tensor
    held_out: Tensor
    held_out_means: Tensor


def latent_space(context: Context) -> Claim:
    """A plain autoencoder and a VAE of the trained model's shape, trained briefly alike, sampled alike."""
    data, test = context.taken(context.train, context.options.training_images), context.taken(context.test, COMPARED)
    features, kind = _features(context, data)
    real = features(_expected(context, test.pixels))

    def distance(images: Tensor) -> float:
        return probes.frechet_distance(features(images), real)

    coded = {}
    for name, objective in (("VAE", "elbo"), ("AE", "autoencoder")):
        coded[name] = _coded(context, context.trained(context.section, objective), data, test, name)
    noise = context.normal("draws", *coded["AE"].held_out.shape).cpu()
    draws = {f"{name}, N(0, I)": (c, noise) for name, c in coded.items()}
    draws |= {f"{name}, N(m, S) of its codes": (c, fitted(c.train_codes, noise)) for name, c in coded.items()}
    images = {name: _decoded(c.model, z) for name, (c, z) in draws.items()}
    samples = {name: {"frechet": distance(images[name]), **_nearness(c, z)} for name, (c, z) in draws.items()}

    held_out = context.taken(context.validation, len(test))
    distances = {"held-out images": distance(_expected(context, held_out.pixels))}
    for name, c in coded.items():
        distances[f"{name}, reconstructions"] = distance(_decoded(c.model, c.held_out_means))
    for name, c in coded.items():
        halfway = (c.held_out_means + c.held_out_means.roll(1, 0)) / 2
        distances[f"{name}, midpoints"] = distance(_decoded(c.model, halfway))
    if context.model.has_prior:
        z = context.model.prior.sample(context.normal("trained prior", len(test), context.model.latent_dim))
        distances["trained model, its prior"] = distance(_decoded(context.model, z))
    numbers: dict[str, Any] = {"training_images": len(data), "epochs": context.options.epochs, "compared": len(test)}
    numbers |= {"frechet_features": kind, "samples": samples, "frechet": distances}
    numbers["code_variances"] = {name: c.train_codes.double().var(0).tolist() for name, c in coded.items()}
    if test.labels is not None:
        labels, expected = torch.from_numpy(data.labels), torch.from_numpy(test.labels)
        for name, c in coded.items():
            predicted = probes.knn_predict(c.train_means, labels, c.held_out_means)
            numbers[f"knn_accuracy_{name.lower()}"] = float((predicted == expected).double().mean())
    size_words, size_picture = _code_size(context, data, test)
    rows = [(name, *(f"{value:.2f}" for value in found.values())) for name, found in samples.items()]
    rows += [(name, f"{value:.2f}", "", "") for name, value in distances.items()]
    return Claim(
        "sampling",
        "A VAE is trained with a distribution to sample from; an autoencoder's codes have none",
        equations.SAMPLING,
        [*_words(numbers), size_words],
        numbers,
        (("images from", "Frechet distance to test images", "draw to code", "code to draw"), *rows),
        (*_pictures(context, coded, images, data, test), size_picture),
    )


def _words(numbers: dict[str, Any]) -> list[str]:
    vae, plain, vae_fitted, fitted = numbers["samples"].values()
    far = numbers["frechet"]
    variances = {name: f"{min(found):.2f} to {max(found):.2f}" for name, found in numbers["code_variances"].items()}
    midway = {name: (far[f"{name}, midpoints"], far[f"{name}, reconstructions"]) for name in ("VAE", "AE")}
    (vae_far, vae_near), (plain_far, plain_near) = midway.values()
    words = [
        f"Both have the trained model's shape and were trained alike, and more briefly than it: "
        f"{numbers['training_images']:,} images, {numbers['epochs']} epochs, the same batches. The codes' variances by "
        f"dimension are {variances['VAE']} (VAE) and {variances['AE']} (autoencoder); N(0, I) has 1. The KL draws the "
        "VAE's codes towards it, not all the way.",
        f"Decoded N(0, I): Frechet distance {vae['frechet']:.2f} for the VAE, {plain['frechet']:.2f} for the "
        f"autoencoder, whose training does not put codes there (held-out images: {far['held-out images']:.2f}). A "
        "Gaussian with the mean and covariance of the codes, N(m, S), measured after training, makes a generative "
        f"model of an autoencoder too (Ghosh et al. 2020, arXiv:1903.12436): {fitted['frechet']:.2f}, and "
        f"{vae_fitted['frechet']:.2f} for the VAE. Features: {numbers['frechet_features']}.",
        "Draw to code (near generative precision): the distance of a draw to the nearest code of a training image, "
        f"over that of a held-out code. N(0, I): {vae['draw_to_code']:.2f} for the VAE, {plain['draw_to_code']:.2f} "
        f"for the autoencoder; N(m, S) of its codes: {fitted['draw_to_code']:.2f}. Code to draw (near recall): the "
        "distance of a held-out code to the nearest draw, over that to the nearest code: "
        f"{vae['code_to_draw']:.2f}, {plain['code_to_draw']:.2f} and {fitted['code_to_draw']:.2f}. Draws from the "
        "distribution of the codes have both near 1.",
        f"Half-way between the codes of two test images the Frechet distance is {vae_far:.2f} for the VAE and "
        f"{plain_far:.2f} for the autoencoder; over that of its own reconstructions {vae_far / vae_near:.1f} and "
        f"{plain_far / plain_near:.1f}.",
    ]
    if "knn_accuracy_vae" in numbers:
        both = f"{numbers['knn_accuracy_vae']:.1%} (VAE) and {numbers['knn_accuracy_ae']:.1%} (autoencoder)"
        words.append(f"k-NN accuracy on the codes' means: {both}.")
    return words


@torch.no_grad()
def _coded(context: Context, model: VAE, data: Split, test: Split, name: str) -> Coded:
    found = []
    for split, images, training in (("train", data, True), ("test", test, False)):
        parts = [model.encode(x) for x in _batches(context, images.pixels, f"codes {split}", training=training)]
        mean = torch.cat([part.mean for part in parts])
        spread = torch.exp(0.5 * torch.cat([part.log_variance for part in parts]))
        noise = context.normal(f"codes {name} {split}", *mean.shape)
        found += [(mean if model.deterministic else mean + spread * noise).cpu(), mean.cpu()]
    return Coded(model, *found)


def fitted(codes: Tensor, noise: Tensor) -> Tensor:
    """Draws of the Gaussian with the mean and the covariance of codes [N, Z], from standard normal noise [M, Z]."""
    values, vectors = torch.linalg.eigh(torch.cov(codes.double().T).reshape(codes.shape[1], -1))
    root: Tensor = (vectors * values.clamp(min=0).sqrt() @ vectors.T).to(noise)
    return codes.mean(0) + noise @ root


def _nearness(coded: Coded, z: Tensor) -> dict[str, float]:
    """Of draws z [M, Z] to the codes, both 1 at best: near generative precision, and near recall.

    Not finite where all codes are one.
    """

    def nearest(points: Tensor, among: Tensor) -> Tensor:
        """Median distance of points [N, Z] to the nearest of others [M, Z]."""
        parts = [torch.cdist(part, among).min(1).values for part in torch.split(points, ROWS)]
        return torch.cat(parts).median().double()

    codes = coded.train_codes[: len(z)]
    usual = nearest(coded.held_out, codes)
    found = {"draw_to_code": nearest(z, codes) / usual, "code_to_draw": nearest(coded.held_out, z) / usual}
    return {name: float(ratio) for name, ratio in found.items()}


@torch.no_grad()
def _decoded(model: VAE, z: Tensor) -> Tensor:
    return torch.cat([decoded(model, part.to(model.device)).cpu() for part in torch.split(z, ROWS)])


def _batches(context: Context, pixels: Pixels, stream: str, *, training: bool = False) -> Iterator[Tensor]:
    starts = range(0, len(pixels), ROWS)
    return (context.observed(pixels[s : s + ROWS], f"{stream} {s}", training=training) for s in starts)


def _expected(context: Context, pixels: Pixels) -> Tensor:
    """Images as a model is to draw them, pixels on [0, 1]: grey values at the middle of their bins."""
    return context.model.likelihood.observe(torch.from_numpy(pixels), None)


def _features(context: Context, data: Split) -> tuple[Callable[[Tensor], Tensor], str]:
    """What a Frechet distance is taken of: a classifier's features, or principal components without labels."""
    images = torch.cat([probes.shrink(x.cpu()) for x in _batches(context, data.pixels, "features", training=True)])

    def small(x: Tensor) -> Tensor:
        """Binary where the images are: an expected image is then drawn from."""
        if context.model.likelihood.measure == "binary":
            x = (torch.rand(x.shape, generator=context.generator("binary")) < x).float()
        return probes.shrink(x)

    if data.labels is not None:
        classifier = probes.train_classifier(images, torch.from_numpy(data.labels), context.options.seed)
        features = partial(probes.classifier_features, classifier)
        return lambda x: features(torch.split(small(x), ROWS)), "of a small classifier trained here"
    mean, axes = probes.principal_components(images.flatten(1), COMPONENTS)
    return lambda x: (small(x).flatten(1) - mean) @ axes, f"{axes.shape[1]} principal components of the pixels"


def mixtures(three: Tensor) -> Tensor:
    """Weighted sums of three things [3, ...], for each of MIXED: [M, ...]."""
    return torch.einsum("mk,k...->m...", torch.tensor(list(MIXED.values()), dtype=three.dtype), three)


@torch.no_grad()
def kept(context: Context, data: Split, test: Split) -> dict[str, dict[int, float]]:
    """Quality of reconstructions of test images by the number of the code's dimensions that are kept.

    Of the trained model those of the largest variance over the images, the others at their mean; beside it principal
    components of training images, the best linear code of each size. PSNR is -10 log10(MSE), dB.
    """
    model, expected = context.model, _expected(context, test.pixels).flatten(1)
    codes = torch.cat([model.encode(x).mean.cpu() for x in _batches(context, test.pixels, "sizes")])
    order = codes.var(0).argsort(descending=True)
    some = context.taken(data, max(2, probes.PIXELS // math.prod(model.shape)))
    training = [x.cpu().flatten(1) for x in _batches(context, some.pixels, "linear", training=True)]
    mean, axes = probes.principal_components(torch.cat(training), model.latent_dim)
    found: dict[str, dict[int, float]] = {"this model": {}, "principal components": {}}
    for size in [*(n for n in SIZES if n < model.latent_dim), model.latent_dim]:
        part = codes.mean(0).repeat(len(codes), 1)
        part[:, order[:size]] = codes[:, order[:size]]
        found["this model"][size] = _psnr(_decoded(model, part).flatten(1) - expected)
        if size <= axes.shape[1]:
            linear = mean + (expected - mean) @ axes[:, :size] @ axes[:, :size].T
            found["principal components"][size] = _psnr(linear - expected)
    return found


def _code_size(context: Context, data: Split, test: Split) -> tuple[str, Picture]:
    found = kept(context, data, test)
    sizes, (ours, linear) = (
        ", ".join(map(str, found["this model"])),
        (", ".join(f"{value:.1f}" for value in values.values()) for values in found.values()),
    )
    words = (
        f"Code size against quality: with {sizes} numbers of its code the trained model reconstructs {len(test):,} "
        f"test images at {ours} dB (PSNR of the mean squared error); principal components, the best linear code, at "
        f"{linear}. A model trained for a smaller code uses it better than this one with parts of its code left out."
    )

    def draw(axes: Any) -> None:
        for name, points in found.items():
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        axes.set(xscale="log", xlabel="numbers kept of the code", ylabel="PSNR, dB", title="Code size against quality")
        axes.legend()

    caption = "PSNR of reconstructed test images by how much of the code is kept, the rest at its mean."
    return words, chart("code_size", caption, draw)


def _psnr(error: Tensor) -> float:
    return float(-10 * error.double().square().mean().log10())


def _pictures(
    context: Context, coded: dict[str, Coded], images: dict[str, Tensor], data: Split, test: Split
) -> tuple[Picture, ...]:
    """Decoded draws, interpolations, and the codes' two widest principal directions with N(0, I) as circles."""
    draws = [("test images", _expected(context, test.pixels[:COLUMNS]))]
    draws += [(name, drawn[:COLUMNS]) for name, drawn in images.items()]
    paths = []
    for pair in range(SHOWN_PAIRS):
        x = context.observed(test.pixels[2 * pair : 2 * pair + 2], f"pair {pair}")
        paths += [(name, interpolate(c.model, x, COLUMNS)) for name, c in coded.items()]

    x = context.observed(test.pixels[:3], "mixed")
    mixed = [("pixels", mixtures(_expected(context, test.pixels[:3])))]
    mixed += [
        (f"{name}'s codes", _decoded(c.model, mixtures(c.model.encode(x).mean.cpu()))) for name, c in coded.items()
    ]
    colours: dict[str, Any] = {} if data.labels is None else {"c": data.labels[:1500], "cmap": "tab10"}

    def draw(*panels: Any) -> None:
        angle = np.linspace(0, 2 * np.pi, 200)
        for axes, (name, c) in zip(panels, coded.items(), strict=True):
            flat = (c.train_codes[:1500] @ probes.principal_components(c.train_codes, 2)[1]).numpy()
            axes.scatter(flat[:, 0], flat[:, -1], s=3, alpha=0.6, **colours)
            for radius in (1, 2, 3):
                axes.plot(radius * np.cos(angle), radius * np.sin(angle), color=INK, linewidth=0.9)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set(title=f"{name}: codes", xlabel="first principal direction", ylabel="second")

    samples = "The same noise, decoded by both models, as N(0, I) and with the mean and covariance of their codes."
    lines = "Two pairs of test images: the straight line between their codes, decoded."
    blends = "Three test images mixed: their pixels, which shows all three at once, and their codes, decoded."
    dots = "dots, coloured by class" if colours else "dots"
    codes = f"Codes of training images ({dots}) and N(0, I) at one, two and three standard deviations (circles)."
    return (
        image_rows("samples", samples, "Decoded draws", draws),
        image_rows("interpolations", lines, "Interpolations", paths),
        image_rows("mixtures", blends, "Mixtures of three images", mixed, list(MIXED)),
        *charts("codes", [f"{name}: {codes}" for name in coded], draw),
    )
