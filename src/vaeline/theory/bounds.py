"""Claims on the bound: log p(x) = ELBO + KL(q || p(z|x)), and ELBO = reconstruction - KL."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaeline.core.estimators import annealed_log_likelihood, importance_log_likelihood, log_weights
from vaeline.core.metrics import Measured
from vaeline.core.objectives import elbo_terms, importance_weighted_bound
from vaeline.plotting.charts import INK, chart
from vaeline.theory.claim import Claim
from vaeline.theory.context import Context

DECODED = 500  # images decoded at once
BOUND_DRAWS = 100  # of the ELBO, an image, apart from the importance samples
RUNGS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]  # k of the climb
ANNEALED_IMAGES, CHAINS, TEMPERATURES, LEAPFROG = 12, 8, 40, 5
NO_BOUND = "Does not apply: the trained model is a plain autoencoder. It has no q(z|x), so no ELBO and no p(x)."
GAP = Claim(
    "gap",
    "The difference of log p(x) and the bound is a divergence, so it is never negative",
    "log p(x) = ELBO(x) + KL(q(z|x) ‖ p(z|x))\n"
    "log p(x) = lim_k E[log (1/k) Σ_i w_i],   w_i = p(x, z_i) / q(z_i|x),   z_i ~ q(z|x)",
)
TERMS = Claim(
    "terms",
    "The ELBO is a reconstruction term minus a rate",
    "ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) ‖ p(z)) = E_q[log p(x, z) - log q(z|x)]\n          -distortion        rate",
)


def gap(context: Context) -> Claim:
    """The climb of IWAE-k from the ELBO to log p(x), the gap of each image, and AIS beside importance sampling."""
    if context.model.deterministic:
        return replace(GAP, words=(NO_BOUND,))
    images, x = context.tested(context.options.images)
    samples = context.options.importance_samples
    weights = _weights(context, x, samples, "importance")
    log_p, log_p_se = importance_log_likelihood(weights)
    draws = _weights(context, x, BOUND_DRAWS, "bound")  # apart, so that no gap is positive by construction
    elbo = draws.mean(0)
    gaps, errors = log_p - elbo, (draws.var(0) / BOUND_DRAWS + log_p_se.square()).sqrt()
    steps = [k for k in RUNGS if k < samples] + [samples]
    climb = {k: Measured.of(bound_at(weights, k) - weights.mean(0)) for k in steps}
    annealed, annealed_se, _ = annealed_log_likelihood(
        context.model,
        x[:ANNEALED_IMAGES],
        torch.linspace(0, 1, TEMPERATURES + 1, dtype=torch.float64),
        torch.Generator(context.device).manual_seed(context.generator("annealed").initial_seed()),
        chains=CHAINS,
        leapfrog_steps=LEAPFROG,
    )
    difference = annealed.cpu() - log_p[:ANNEALED_IMAGES]
    difference_se = (annealed_se.cpu().square() + log_p_se[:ANNEALED_IMAGES].square()).sqrt()
    mean, below, smallest = Measured.of(gaps), int((gaps < -2 * errors).sum()), int(gaps.argmin())
    words = (
        f"{len(images)} test images. ELBO {Measured.of(elbo).text()}, log p(x) {Measured.of(log_p).text()} nats per "
        f"image (importance sampling, k = {samples}; the ± are those of the sample of images). Gap "
        f"{mean.text()} nats; the smallest of an image {float(gaps[smallest]):.2f} ± {float(errors[smallest]):.2f}, "
        f"images below zero by more than two standard errors: {below}. ELBO and log p(x) are from separate draws.",
        second_opinion(difference, difference_se, samples),
    )
    numbers: dict[str, Any] = {
        "images": len(images),
        "importance_samples": samples,
        **Measured.of(elbo).numbers("elbo"),
        **Measured.of(log_p).numbers("log_likelihood"),
        **mean.numbers("gap"),
        "smallest_gap": float(gaps[smallest]),
        "smallest_gap_se": float(errors[smallest]),
        "gaps_below_zero_by_2_se": below,
        "climb": {str(k): value.numbers("above_elbo") for k, value in climb.items()},
        **Measured.of(difference).numbers("annealed_minus_importance"),
        "annealed_minus_importance_median": float(difference.median()),
    }
    caption = "Left: IWAE-k above the ELBO. Middle: each image's gap. Right: annealing against importance sampling."
    draw = partial(_draw_gap, climb=climb, gaps=gaps, difference=difference, errors=difference_se)
    picture = chart("gap", caption, draw, panels=3)
    return replace(GAP, words=words, numbers=numbers, pictures=(picture,))


def second_opinion(difference: Tensor, errors: Tensor, samples: int) -> str:
    """Words on annealing's log p(x) less that of importance sampling, and its standard errors: [A] nats each."""
    above, largest = difference > 2 * errors, int(difference.argmax())
    words = (
        f"Annealed importance sampling (AIS), another method, on {len(difference)} of them: above importance sampling "
        f"(IS) by {Measured.of(difference).text()} nats (median {float(difference.median()):.2f}), by more than two "
        f"standard errors on {int(above.sum())}. Both are lower bounds in expectation, so the higher is the nearer."
    )
    if not above.any():
        return f"{words} No image is found where {samples} samples of q(z|x) are too few."
    return (
        f"{words} IS is then too low on hard images, whose posterior {samples} samples of q(z|x) do not reach: by "
        f"{float(difference[largest]):.1f} ± {float(errors[largest]):.1f} nats on the hardest. The log p(x) above is "
        "too low by the mean difference at least, and the gap too small by as much; an image's own standard error "
        "cannot show what its samples never reached."
    )


def bound_at(weights: Tensor, k: int) -> Tensor:
    """IWAE-k from log weights [K, B]: its mean over K // k disjoint groups, [B]."""
    groups = len(weights) // k
    grouped = weights[: groups * k].view(groups, k, -1).movedim(1, 0)  # [k, groups, B]
    return importance_weighted_bound(grouped).mean(0)


@torch.no_grad()
def _weights(context: Context, x: Tensor, samples: int, stream: str) -> Tensor:
    """log w, [K, B], float64, on the CPU."""
    generator, model = context.generator(stream), context.model
    chunk, parts = max(1, DECODED // len(x)), []
    for start in range(0, samples, chunk):
        shape = (min(chunk, samples - start), len(x), model.latent_dim)
        noise = torch.randn(shape, generator=generator).to(context.device)
        parts.append(log_weights(model, x, noise).double().cpu())
    return torch.cat(parts)


def _draw_gap(
    left: Any, middle: Any, right: Any, climb: dict[int, Measured], gaps: Tensor, difference: Tensor, errors: Tensor
) -> None:
    values, bars = [m.value for m in climb.values()], [m.se for m in climb.values()]
    left.errorbar(list(climb), values, bars, marker="o", markersize=3, capsize=2)
    left.axhline(0, color=INK, linewidth=0.8)
    left.annotate("ELBO", (1, 0), (0, -10), textcoords="offset points")
    left.set(xscale="log", xlabel="k", ylabel="nats above the ELBO", title="IWAE-k climbs to log p(x)")
    left.margins(y=0.12)
    middle.hist(gaps.numpy(), bins=30, color="C2")
    middle.axvline(0, color=INK, linewidth=1.2)
    middle.set(xlabel="log p(x) - ELBO, nats", ylabel="images", title="The gap of each image")
    right.errorbar(range(len(difference)), difference.numpy(), 2 * errors.numpy(), fmt="o", markersize=3, capsize=2)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set(xlabel="image", ylabel="nats", title="AIS - IS, ± 2 standard errors")


def terms(context: Context) -> Claim:
    """The two terms on test images, along the training, and the KL of every latent dimension."""
    if context.model.deterministic:
        return replace(TERMS, words=(NO_BOUND,))
    images, x = context.tested(context.options.images)
    with torch.no_grad():
        found = elbo_terms(context.model, x, context.normal("terms", len(x), context.model.latent_dim))
    by_terms, by_densities = found.elbo.double().cpu(), _weights(context, x, BOUND_DRAWS, "densities").mean(0)
    elbo, difference = Measured.of(by_terms), Measured.of(by_terms - by_densities)
    reconstruction, rate = Measured.of(found.reconstruction), Measured.of(found.kl)
    words = (
        f"{len(images)} test images: {reconstruction.text()} - {rate.text()} = {elbo.text()} nats per image. The rate, "
        f"{rate.value / math.log(2):.1f} bits, is the information in the latents about an image; the more of it, the "
        "nearer the reconstruction. With β = 1 training ends where a nat of rate gains less than a nat of it.",
        f"The same bound from the densities alone, with no KL in closed form, differs by {difference.text()} nats.",
    )
    per_dimension = found.kl_per_dimension.double().mean(0).cpu().tolist()
    numbers = {
        "images": len(images),
        **elbo.numbers("elbo"),
        **reconstruction.numbers("reconstruction"),
        **rate.numbers("rate"),
        **difference.numbers("terms_minus_densities"),
        "kl_per_dimension": per_dimension,
    }
    caption = "Left: the bound and its reconstruction by epoch. Middle: rate and distortion. Right: KL by dimension."
    test = (rate.value, -reconstruction.value)
    draw = partial(_draw_terms, context=context, test=test, per_dimension=per_dimension)
    picture = chart("terms", caption, draw, panels=3)
    return replace(TERMS, words=words, numbers=numbers, pictures=(picture,))


def _draw_terms(
    left: Any, middle: Any, right: Any, context: Context, test: tuple[float, float], per_dimension: list[float]
) -> None:
    history, bound = context.history, context.objective.upper()
    for split, style in (("train", "--"), ("validation", "-")):
        for key, name, colour in (("elbo", bound, "C0"), ("reconstruction", "reconstruction", "C1")):
            values = [getattr(row, f"{split}_{key}") for row in history]
            epochs = [row.epoch for row in history]
            left.plot(epochs, values, style, marker=".", color=colour, label=f"{name}, {split}")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="epoch", ylabel="nats per image", title="Training")
    left.legend()
    known = [(r.validation_kl, -r.validation_reconstruction) for r in history if r.validation_kl is not None]
    if known:
        middle.plot(*zip(*known, strict=True), marker=".", label="validation, by epoch")
    middle.plot(*test, "*", color=INK, markersize=9, label="test")
    middle.set(xlabel="rate: KL, nats", ylabel="distortion: -reconstruction, nats", title="Rate and distortion")
    middle.legend()
    right.bar(range(len(per_dimension)), sorted(per_dimension, reverse=True), color="C2")
    name = "latent dimension, by KL" if len(per_dimension) > 1 else "this prior does not factorise: one KL"
    right.set(xlabel=name, ylabel="mean KL, nats", title="Where the rate goes")
