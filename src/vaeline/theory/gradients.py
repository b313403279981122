"""Claims on gradients: five estimators agree in the mean and not in the noise; a batch's size divides the variance."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaeline.core.likelihoods import Gaussian
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.core.objectives import Bound, Estimator, elbo_terms, estimate, log_weights
from vaeline.core.priors import StandardNormal
from vaeline.plotting.charts import INK, chart, charts
from vaeline.theory import equations
from vaeline.theory.claim import Claim, Context

WAYS: tuple[tuple[Bound, Estimator], ...] = (
    ("elbo", "pathwise"),
    ("elbo", "score-function"),
    ("elbo", "score-function-baseline"),
    ("elbo", "sticking-the-landing"),
    ("iwae", "pathwise"),
    ("iwae", "score-function"),
    ("iwae", "score-function-baseline"),
    ("iwae", "doubly-reparameterised"),
)
SAMPLES = 2  # of z, an image
REPEATS, ROWS, SMALL_PIXELS, SMALL_IMAGES, NODES = 100, 100, 3, 3, 32
BATCH, PAIRS = 32, 10  # on the trained model
BATCHES, BATCH_PAIRS = (1, 4, 16, 64, 256), 24

Gradient = tuple[Tensor, ...]
Numbers = dict[str, float]


def estimators(context: Context) -> Claim:
    """Every estimator against the exact gradient of a small model, and its variance there and on the trained model."""
    deviations, ways = _measure(context)
    score, largest = ways["elbo/score-function"], max(way["largest_z"] for way in ways.values())
    landing, landed = ways["elbo/sticking-the-landing"], ""
    on_trained, count = "", sum(map(len, deviations.values()))
    chance = count * math.erfc(4 / math.sqrt(2))  # of normal numbers, however dependent
    if "trained_variance_ratio" in score:
        on_trained = f", {score['trained_variance_ratio']:,.0f} on the trained one (a batch of {BATCH} images)"
        landed = f" and {landing['trained_variance_ratio']:.2g} on the trained one"
    title = "The score function is unbiased and noisy; reparameterising takes the noise outside"
    words = (
        f"Small model: z is one number, x has {SMALL_PIXELS}, everything is linear and Gaussian, and the gradient is "
        f"exact by quadrature. The largest |z| of {count} gradient components over all estimators is {largest:.2f}. "
        f"Without a bias one beyond 4 has a chance of at most {chance:.1%} (the sum over all of them: the estimators "
        "share their noise, so these z are not independent).",
        "The score function weighs ∇ log q by log w, a number of the size of log p(x); the pathwise estimator takes "
        "the noise outside, z = μ + σ ε, and differentiates the decoder. On the ELBO the encoder's gradient has by the "
        f"score function {score['variance_ratio']:.3g} times the variance on the small model{on_trained}.",
        "Sticking the landing has no variance left where q is the true posterior, and may have more where q is far "
        f"from it: {landing['variance_ratio']:.2g} times that of the pathwise one on the small model{landed}. A "
        "baseline takes the size of log p(x) out of the score function.",
    )
    numbers = {"largest_z": largest, "components": count, "chance_beyond_4": chance, "estimators": ways}
    header = ("bound", "estimator", "largest |z|", "variance / pathwise, small", "variance / pathwise, trained")
    rows = []
    for (bound, name), way in zip(WAYS, ways.values(), strict=True):
        ratios = [f"{way[key]:.3g}" if key in way else "" for key in ("variance_ratio", "trained_variance_ratio")]
        rows.append(("ELBO" if bound == "elbo" else f"IWAE-{SAMPLES}", name, f"{way['largest_z']:.2f}", *ratios))
    captions = "All estimators agree with the exact gradient.", "Their variance over that of the pathwise one."
    pictures = charts("estimators", captions, partial(_draw_estimators, deviations=deviations, ways=ways))
    return Claim("estimators", title, equations.ESTIMATORS, words, numbers, (header, *rows), pictures)


def _measure(context: Context) -> tuple[dict[str, Tensor], dict[str, Numbers]]:
    """By estimator: (mean - exact) / standard error of every parameter of the small model, [P], and the numbers.

    Variances are of the encoder's gradient: of one image on the small model, of a batch on the trained one.
    """
    small, x = linear_gaussian()
    exact = {bound: exact_gradient(small, x, bound) for bound in ("elbo", "iwae")}
    repeated, weights = x.repeat(ROWS, 1, 1, 1), sum(p.numel() for p in small.encoder.parameters())
    trained = copy.deepcopy(context.model).requires_grad_()
    batch = context.observed(context.taken(context.train, BATCH).pixels, "estimators", training=True)
    deviations, ways = {}, {}
    for bound, name in WAYS:
        generator = torch.Generator().manual_seed(1)
        draw = partial(_gradient, small, repeated, list(small.parameters()), generator, bound, name)
        found = torch.stack([_flat(draw()) for _ in range(REPEATS)])  # [R, P], the encoder's parameters first
        z = (found.mean(0) - exact[bound]) / (found.std(0) / math.sqrt(REPEATS) + 1e-12)
        way = {"largest_z": float(z.abs().max()), "variance": float(found[:, :weights].var(0).sum()) * len(repeated)}
        deviations[f"{bound}/{name}"], ways[f"{bound}/{name}"] = z, way
        pathwise = ways[f"{bound}/pathwise"]  # comes first
        way["variance_ratio"] = way["variance"] / pathwise["variance"]
        if not context.model.deterministic:
            generator = context.generator("estimators")
            draw = partial(_gradient, trained, batch, list(trained.encoder.parameters()), generator, bound, name)
            way |= variance(draw, PAIRS).numbers("trained_variance")
            if pathwise["trained_variance"]:  # none where the encoder has died
                way["trained_variance_ratio"] = way["trained_variance"] / pathwise["trained_variance"]
    return deviations, ways


def _gradient(
    model: VAE, x: Tensor, parameters: list[nn.Parameter], generator: torch.Generator, bound: Bound, name: Estimator
) -> Gradient:
    """One estimate of the gradient of the bound's mean over images [B, C, H, W]."""
    noise = torch.randn(SAMPLES, len(x), model.latent_dim, generator=generator, dtype=x.dtype).to(x.device)
    return torch.autograd.grad(estimate(model, x, noise, name, bound=bound).surrogate.mean(), parameters)


def linear_gaussian() -> tuple[VAE, Tensor]:
    """x = W z + b + σ e with a linear encoder, away from every optimum; and images [N, 1, 1, D] for it."""
    shape, generator, likelihood = (1, 1, SMALL_PIXELS), torch.Generator().manual_seed(0), Gaussian(None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the weights that torch draws are not wanted
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(SMALL_PIXELS, 2))
        decoder = nn.Sequential(nn.Linear(1, SMALL_PIXELS), nn.Unflatten(1, shape))
        model = VAE(encoder, decoder, likelihood, StandardNormal(), shape=shape, latent_dim=1).double()
        for p in (*encoder.parameters(), *decoder.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / (2 if p.ndim == 2 else 4))
        likelihood.log_sigma.fill_(-0.2)
    return model, torch.randn(SMALL_IMAGES, *shape, generator=generator, dtype=torch.float64)


def exact_gradient(model: VAE, x: Tensor, bound: Bound) -> Tensor:
    """[P], of the bound's mean over the images, by Gauss-Hermite quadrature over the noise of both samples."""
    places, weights = np.polynomial.hermite_e.hermegauss(NODES)
    noise = torch.tensor(list(itertools.product(places, repeat=SAMPLES))).T  # [K, N]
    weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=SAMPLES))).prod(1)  # [N]
    repeated = x.repeat_interleave(noise.shape[1], dim=0)  # [B N, 1, 1, D]
    log_w = log_weights(model, repeated, noise.repeat(1, len(x)).unsqueeze(-1))  # [K, B N]
    value = log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(SAMPLES)
    return _flat(torch.autograd.grad((value.view(len(x), -1) @ weight).mean(), list(model.parameters())))


def _flat(gradient: Gradient) -> Tensor:
    return torch.cat([part.flatten() for part in gradient])


def variance(draw: Callable[[], Gradient], pairs: int) -> Measured:
    """The summed variance of a random gradient, from independent pairs: E|g - g'|^2 / 2."""
    values = [
        float(sum((a - b).double().square().sum() for a, b in zip(draw(), draw(), strict=True))) / 2
        for _ in range(pairs)
    ]
    return Measured.of(torch.tensor(values, dtype=torch.float64))


def batch_size(context: Context) -> Claim:
    """The variance of the minibatch gradient of the trained model at growing batches: slope -1 on two logarithms."""
    generator = context.generator("batches")
    found = {size: variance(_batches(context, size, generator), BATCH_PAIRS) for size in BATCHES}
    title = "A batch of B images divides the gradient's variance by B"
    if not all(m.value > 0 and m.se > 0 for m in found.values()):
        return Claim(
            "batch_size", title, equations.BATCH_SIZE, ("Does not apply: all of the model's units have died.",)
        )
    slope, series, part = fitted_slope(found), {"images and z": found}, ""
    if not context.model.deterministic:
        generator = context.generator("batches, z alone")
        sizes = {size: variance(_batches(context, size, generator, repeated=True), PAIRS) for size in BATCHES}
        series["z alone"], share = sizes, sum(m.value / found[b].value for b, m in sizes.items()) / len(sizes)
        part = (
            f" Two sources of noise are in it, which images and which z: with the same images and another z the "
            f"variance is {share:.0%} of it (mean over these batches). Both fall as 1/B."
        )
    words = (
        f"The variance of the trained model's gradient, summed over all parameters, at batches of {BATCHES} random "
        f"training images. Fitted slope of log variance over log B: {slope.text(3)}; expected: -1. The standard "
        f"deviation falls as 1/√B: large batches gain less and less.{part}",
        "Where popular accounts err: an epoch, a pass over all images, does not bring stochastic gradients to the true "
        "one. Each was unbiased at weights that have moved since, and their variance stays that of a batch. "
        "What lets training settle is the falling learning rate.",
    )
    numbers = {**slope.numbers("slope"), "variance": {str(s): m.numbers("variance") for s, m in found.items()}}
    label = f"slope {slope.text(3)}"

    def draw(axes: Any) -> None:
        for name, values in series.items():
            spread = [2 * m.se for m in values.values()]
            axes.errorbar(list(values), [m.value for m in values.values()], spread, fmt="o", capsize=2, label=name)
        last = BATCHES[-1]
        axes.plot(BATCHES, [found[last].value * last / b for b in BATCHES], "--", color=INK, lw=0.8, label="slope -1")
        axes.set(xscale="log", yscale="log", xlabel="B, images", ylabel="gradient's variance", title=label)
        axes.legend()

    picture = chart("batch_size", "The gradient's variance at each batch size, ± 2 standard errors.", draw)
    return Claim("batch_size", title, equations.BATCH_SIZE, words, numbers, pictures=(picture,))


def _batches(
    context: Context, size: int, generator: torch.Generator, *, repeated: bool = False
) -> Callable[[], Gradient]:
    """Draws the gradient of a batch; `repeated`: each batch twice running, with another z."""
    model, last = copy.deepcopy(context.model).requires_grad_(), list[Tensor]()

    def gradient() -> Gradient:
        kept = last.pop() if last else None
        chosen = torch.randint(len(context.train), (size,), generator=generator).numpy()
        noise_seed = int(torch.randint(2**31, (), generator=generator))
        x = kept
        if x is None:
            x = context.observed(np.array(context.train.pixels[chosen]), f"batch {noise_seed}", training=True)
            last.extend([x] if repeated else [])
        noise = None if model.deterministic else context.normal(f"batch {noise_seed}", size, model.latent_dim)
        elbo = elbo_terms(model, x, noise).elbo.mean()
        found = torch.autograd.grad(elbo, list(model.parameters()), allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradient


def fitted_slope(found: dict[int, Measured]) -> Measured:
    """Of log variance over log size, weighted by the points' standard errors."""
    x = np.log(list(found))
    y = np.log([m.value for m in found.values()])
    weight = np.array([(m.value / m.se) ** 2 for m in found.values()])
    centre = x - (weight * x).sum() / weight.sum()
    precision = (weight * centre**2).sum()
    return Measured(float((weight * centre * y).sum() / precision), float(precision**-0.5))


def _draw_estimators(left: Any, right: Any, deviations: dict[str, Tensor], ways: dict[str, Numbers]) -> None:
    names = [f"{name}, {'ELBO' if bound == 'elbo' else 'IWAE'}" for bound, name in WAYS]
    places = np.arange(len(names))
    for place, z in enumerate(deviations.values()):
        left.plot(z.numpy(), [place] * len(z), "|", markersize=9)
    for edge in (-4, 4):
        left.axvline(edge, color=INK, linestyle="--", linewidth=0.8)
    left.set(xlim=(-5, 5), xlabel="(mean - exact) / standard error", title="Unbiased: small model")
    for key, offset, label in (("variance_ratio", -0.2, "small"), ("trained_variance_ratio", 0.2, "trained")):
        if all(key in way for way in ways.values()):
            right.barh(places + offset, [way[key] for way in ways.values()], 0.38, label=f"{label} model")
    right.axvline(1, color=INK, linewidth=0.8)
    right.set(xscale="log", xlabel="variance / that of pathwise", title="Not equally noisy")
    right.legend()
    for axes in (left, right):
        axes.set_yticks(places, names)
        axes.invert_yaxis()
