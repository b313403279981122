"""Claims on gradients: five estimators agree in the mean and not in the noise; a batch's size divides the variance."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaeline.core.estimators import log_weights
from vaeline.core.likelihoods import Gaussian
from vaeline.core.metrics import Measured
from vaeline.core.model import VAE
from vaeline.core.objectives import Bound, Estimator, elbo_terms, estimate
from vaeline.core.priors import StandardNormal
from vaeline.plotting.charts import INK, chart
from vaeline.theory.claim import Claim
from vaeline.theory.context import Context

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

Gradient = list[Tensor]
Numbers = dict[str, float]


def estimators(context: Context) -> Claim:
    """Every estimator against the exact gradient of a small model, and its variance there and on the trained model."""
    deviations, ways = _measure(context)
    plain, score = ways["elbo/pathwise"], ways["elbo/score-function"]
    largest, count = max(way["largest_z"] for way in ways.values()), sum(map(len, deviations.values()))
    on_trained = "; the trained model is a plain autoencoder, which has no noise to take outside."
    if not context.model.deterministic:
        ratio = score["trained_variance_ratio"]
        relative = math.hypot(*(way["trained_variance_se"] / way["trained_variance"] for way in (score, plain)))
        factor = f"{ratio:,.0f} ± {ratio * relative:,.0f}"
        on_trained = f", times {factor} on the trained model (encoder's gradient, one batch of {BATCH} images)."
    title = "The score function is unbiased and noisy; reparameterising takes the noise outside"
    equation = (
        "pathwise        ∇ E_ε[f(μ + σ ε)] = E_ε[∇ f(μ + σ ε)]\n"
        "score function  ∇ E_q[f(z)] = E_q[f(z) ∇ log q(z)] + E_q[∇ f(z)]\n"
        f"f = log w (ELBO) or log of the mean of w (IWAE), {SAMPLES} samples of z"
    )
    words = (
        f"Small model: z is one number, x has {SMALL_PIXELS}, everything is linear and Gaussian, and the gradient is "
        f"exact by quadrature. The largest |z| of {count} gradient components over all estimators is {largest:.2f}: "
        "each is unbiased (of normal numbers one in 16,000 is beyond 4).",
        "The score function weighs ∇ log q by log w, a number of the size of log p(x); the pathwise estimator takes "
        "the noise outside, z = μ + σ ε, and differentiates the decoder. On the ELBO, score function over pathwise: "
        f"variance times {score['variance_ratio']:.3g} on the small model{on_trained}",
        "Sticking the landing has no variance left where q is the true posterior: it gains on a trained model, not on "
        "this small one, whose q is far from it. A baseline takes the size of log p(x) out of the score function.",
    )
    numbers = {"largest_z": largest, "components": count, "estimators": ways}
    header = ("bound", "estimator", "largest |z|", "variance / pathwise, small", "variance / pathwise, trained")
    rows = []
    for (bound, name), way in zip(WAYS, ways.values(), strict=True):
        trained = f"{way['trained_variance_ratio']:.3g}" if "trained_variance_ratio" in way else ""
        measured = (f"{way['largest_z']:.2f}", f"{way['variance_ratio']:.3g}", trained)
        rows.append(("ELBO" if bound == "elbo" else f"IWAE-{SAMPLES}", name, *measured))
    caption = "Left: all estimators agree with the exact gradient. Right: their variance over that of the pathwise one."
    picture = chart("estimators", caption, partial(_draw_estimators, deviations=deviations, ways=ways), panels=2)
    return Claim("estimators", title, equation, words, numbers, (header, *rows), (picture,))


def _measure(context: Context) -> tuple[dict[str, Tensor], dict[str, Numbers]]:
    """By estimator: (mean - exact) / standard error of every parameter of the small model, [P], and the numbers.

    Variances are of the encoder's gradient: of one image on the small model, of a batch on the trained one.
    """
    small, x = linear_gaussian()
    exact = {bound: exact_gradient(small, x, bound) for bound in ("elbo", "iwae")}
    deviations, ways = {}, {}
    for bound, name in WAYS:
        z, small_variance = _on_small(small, x, exact[bound], bound, name)
        way = {"largest_z": float(z.abs().max()), "variance": small_variance}
        deviations[f"{bound}/{name}"], ways[f"{bound}/{name}"] = z, way
        pathwise = ways[f"{bound}/pathwise"]  # comes first
        way["variance_ratio"] = small_variance / pathwise["variance"]
        if not context.model.deterministic:
            way |= _on_trained(context, bound, name).numbers("trained_variance")
            way["trained_variance_ratio"] = way["trained_variance"] / pathwise["trained_variance"]
    return deviations, ways


def linear_gaussian() -> tuple[VAE, Tensor]:
    """x = W z + b + σ e with a linear encoder, away from every optimum; and images [N, 1, 1, D] for it."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    encoder = nn.Linear(SMALL_PIXELS, 2, dtype=torch.float64, device="meta").to_empty(device="cpu")
    decoder = nn.Linear(1, SMALL_PIXELS, dtype=torch.float64, device="meta").to_empty(device="cpu")
    likelihood = Gaussian(None).double()
    with torch.no_grad():
        for layer in (encoder, decoder):
            layer.weight.copy_(normal(*layer.weight.shape) / 2)
            layer.bias.copy_(normal(*layer.bias.shape) / 4)
        likelihood.log_sigma.fill_(-0.2)
    shape = (1, 1, SMALL_PIXELS)
    networks = nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, shape))
    model = VAE(*networks, likelihood, StandardNormal(), shape=shape, latent_dim=1)
    return model, normal(SMALL_IMAGES, *shape)


def exact_gradient(model: VAE, x: Tensor, bound: Bound) -> Gradient:
    """Of the bound's mean over the images, by Gauss-Hermite quadrature over the noise of both samples."""
    places, weights = np.polynomial.hermite_e.hermegauss(NODES)
    noise = torch.tensor(list(itertools.product(places, repeat=SAMPLES))).T  # [K, N]
    weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=SAMPLES))).prod(1)  # [N]
    repeated = x.repeat_interleave(noise.shape[1], dim=0)  # [B N, 1, 1, D]
    log_w = log_weights(model, repeated, noise.repeat(1, len(x)).unsqueeze(-1))  # [K, B N]
    value = log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(SAMPLES)
    return list(torch.autograd.grad((value.view(len(x), -1) @ weight).mean(), list(model.parameters())))


def _on_small(model: VAE, x: Tensor, exact: Gradient, bound: Bound, name: Estimator) -> tuple[Tensor, float]:
    generator = torch.Generator().manual_seed(1)
    repeated, rows = x.repeat(ROWS, 1, 1, 1), []
    for _ in range(REPEATS):
        noise = torch.randn(SAMPLES, len(repeated), 1, generator=generator, dtype=torch.float64)
        value = estimate(model, repeated, noise, name, bound=bound).surrogate.mean()
        rows.append(_flat(torch.autograd.grad(value, list(model.parameters()))))
    found = torch.stack(rows)  # [R, P]
    z = (found.mean(0) - _flat(exact)) / (found.std(0) / math.sqrt(REPEATS) + 1e-12)
    encoder = sum(p.numel() for p in model.encoder.parameters())  # first among the parameters
    return z, float(found[:, :encoder].var(0).sum()) * len(repeated)


def _on_trained(context: Context, bound: Bound, name: Estimator) -> Measured:
    model = copy.deepcopy(context.model).requires_grad_()
    images, generator = context.taken(context.train, BATCH), context.generator("estimators")
    x = context.observed(images.pixels, "estimators", training=True)
    encoder = list(model.encoder.parameters())

    def draw() -> Gradient:
        noise = torch.randn(SAMPLES, len(x), model.latent_dim, generator=generator).to(context.device)
        return list(torch.autograd.grad(estimate(model, x, noise, name, bound=bound).surrogate.mean(), encoder))

    return variance(draw, PAIRS)


def variance(draw: Callable[[], Gradient], pairs: int) -> Measured:
    """The summed variance of a random gradient, from independent pairs: E|g - g'|^2 / 2."""
    values = [
        float(sum((a - b).double().square().sum() for a, b in zip(draw(), draw(), strict=True))) / 2
        for _ in range(pairs)
    ]
    return Measured.of(torch.tensor(values, dtype=torch.float64))


def batch_size(context: Context) -> Claim:
    """The variance of the minibatch gradient of the trained model at growing batches: slope -1 on two logarithms."""
    model, generator = copy.deepcopy(context.model).requires_grad_(), context.generator("batches")

    def gradient(size: int) -> Gradient:
        chosen = torch.randint(len(context.train), (size,), generator=generator).numpy()
        noise_seed = int(torch.randint(2**31, (), generator=generator))
        x = context.observed(np.array(context.train.pixels[chosen]), f"batch {noise_seed}", training=True)
        noise = None if model.deterministic else context.normal(f"batch {noise_seed}", size, model.latent_dim)
        found = torch.autograd.grad(
            elbo_terms(model, x, noise).elbo.mean(), list(model.parameters()), allow_unused=True
        )
        return [g for g in found if g is not None]

    found = {size: variance(partial(gradient, size), BATCH_PAIRS) for size in BATCHES}
    slope = fitted_slope(found)
    title = "A batch of B images divides the gradient's variance by B"
    equation = "g_B = (1/B) Σ_i ∇ ELBO(x_i),   Var[g_B] = Var[g_1] / B"
    words = (
        f"The variance of the gradient of the trained model's training objective, summed over all parameters, at "
        f"batches of {', '.join(map(str, BATCHES))} random training images. Fitted slope of log variance over log B: "
        f"{slope.text(3)}; expected: -1. Twice the batch halves the variance, so the standard deviation falls "
        "as 1/√B: large batches gain less and less.",
    )
    numbers = {**slope.numbers("slope"), "variance": {str(s): m.numbers("variance") for s, m in found.items()}}
    caption = "The gradient's variance at each batch size."
    picture = chart("batch_size", caption, lambda axes: _draw_batches(axes, found, slope))
    return Claim("batch_size", title, equation, words, numbers, pictures=(picture,))


def fitted_slope(found: dict[int, Measured]) -> Measured:
    """Of log variance over log size, weighted by the points' standard errors."""
    x = np.log(list(found))
    y = np.log([m.value for m in found.values()])
    weight = np.array([(m.value / m.se) ** 2 for m in found.values()])
    centre = x - (weight * x).sum() / weight.sum()
    precision = (weight * centre**2).sum()
    return Measured(float((weight * centre * y).sum() / precision), float(precision**-0.5))


def _flat(gradient: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient])


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


def _draw_batches(axes: Any, found: dict[int, Measured], slope: Measured) -> None:
    sizes, values = np.array(list(found)), np.array([m.value for m in found.values()])
    axes.errorbar(sizes, values, [2 * m.se for m in found.values()], fmt="o", markersize=4, capsize=2)
    axes.plot(sizes, values[-1] * sizes[-1] / sizes, "--", color=INK, linewidth=0.8, label="slope -1")
    axes.set(xscale="log", yscale="log", xlabel="B, images", ylabel="variance of the gradient")
    axes.set_title(f"slope {slope.text(3)}")
    axes.legend()
