"""Claims on the bound: log p(x) = ELBO + KL(q || p(z|x)), ELBO = reconstruction - KL, and the KL in both directions."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.estimators import annealed_log_likelihood, importance_log_likelihood
from vaeline.core.laplace import DEGREES, LaplaceProposal, best_diagonal, laplace_proposal
from vaeline.core.metrics import Measured
from vaeline.core.objectives import conditional_log_likelihood, elbo_terms, importance_weighted_bound, log_weights
from vaeline.plotting.charts import INK, bars, charts, lines
from vaeline.theory import equations
from vaeline.theory.claim import Claim, Context

Values = NDArray[np.float64]

DECODED = 500  # images decoded at once
BOUND_DRAWS = 100  # of the ELBO, an image, apart from the importance samples
RUNGS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]  # k of the climb
ANNEALED_IMAGES, TEMPERATURES = 12, 40
ANNEALING = {"chains": 8, "leapfrog_steps": 5}
ACCOUNTS = (
    "Where popular accounts err: the chain rule is p(x, z) = p(x|z) p(z), not p(x|z) p(x). And maximising a bound "
    "need not raise log p(x): the bound also rises where the gap shrinks, and log p(x) may then fall, though never "
    "below the bound."
)
NO_BOUND = "Does not apply: the trained model is a plain autoencoder. It has no q(z|x), so no ELBO and no p(x)."
GRID = np.linspace(-9, 9, 3601)
PARTS = ((0.6, -2.0, 0.6), (0.4, 2.0, 0.8))  # of the mixture p: weight, mean, standard deviation
PAIRS = 100_000


def gap(context: Context) -> Claim:
    """The climb of IWAE-k from the ELBO to log p(x), each image's gap and its two parts, and AIS beside it."""
    title = "The difference of log p(x) and the bound is a divergence, so it is never negative"
    if context.model.deterministic:
        return Claim("gap", title, equations.GAP, (NO_BOUND,))
    x, samples = context.tested(context.options.images), context.options.importance_samples
    weights, plain = _weights(context, x, samples, "importance"), _weights(context, x, samples, "plain", prior=True)
    proposal = laplace_proposal(context.model, x)
    log_p, log_p_se = importance_log_likelihood(_weights(context, x, samples, "laplace", proposal))
    from_q = importance_log_likelihood(weights)[0]
    best = best_diagonal(context.model, x, proposal, context.generator("best"))
    draws = _weights(context, x, BOUND_DRAWS, "bound")  # apart, so that no gap is positive by construction
    amortisation = _weights(context, x, BOUND_DRAWS, "bound", best).mean(0) - draws.mean(0)
    gaps, errors = log_p - draws.mean(0), (draws.var(0) / BOUND_DRAWS + log_p_se.square()).sqrt()
    steps = [k for k in RUNGS if k < samples] + [samples]
    climb = {k: Measured.of(bound_at(weights, k) - weights.mean(0)) for k in steps}
    missing = {k: Measured.of(log_p - bound_at(plain, k)) for k in (max(1, samples // 10), samples)}
    prior_misses = " nats, with ".join(f"{k} samples {value.text()}" for k, value in missing.items())
    drawn = {"prior p(z)": plain, "q(z|x)": weights}
    misses = {name: {k: Measured.of(log_p - bound_at(part, k)) for k in steps} for name, part in drawn.items()}
    generator = torch.Generator(context.device).manual_seed(context.generator("annealed").initial_seed())
    temperatures, some = torch.linspace(0, 1, TEMPERATURES + 1, dtype=torch.float64), slice(ANNEALED_IMAGES)
    annealed, annealed_se, _ = annealed_log_likelihood(context.model, x[some], temperatures, generator, **ANNEALING)
    difference = annealed.cpu() - log_p[some]
    difference_se = (annealed_se.cpu().square() + log_p_se[some].square()).sqrt()
    elbo, likelihood, mean = Measured.of(draws.mean(0)), Measured.of(log_p), Measured.of(gaps)
    below, least, least_se = int((gaps < -2 * errors).sum()), float(gaps.min()), float(errors[gaps.argmin()])
    ais, median, above = Measured.of(difference), float(difference.median()), difference > 2 * difference_se
    largest, largest_se = float(difference.max()), float(difference_se[difference.argmax()])
    encoder, form, missed = Measured.of(amortisation), Measured.of(gaps - amortisation), Measured.of(log_p - from_q)
    words = (
        f"{_chosen(context, x)}: ELBO {elbo.text()}, log p(x) {likelihood.text()} nats per image (importance "
        f"sampling about the mode of p(z|x), k = {samples}; the ± are those of the sample of images). Gap "
        f"{mean.text()} nats, of which {encoder.text()} are the encoder's (amortisation: it has not found the image's "
        f"best diagonal Gaussian) and {form.text()} the diagonal form's (approximation). The smallest gap is "
        f"{least:.2f} ± {least_se:.2f}, images below zero by more than two standard errors: {below}. ELBO and log p(x) "
        f"are from separate draws. As many samples of q(z|x) itself miss {missed.text()} nats of log p(x).",
        f"log p(x) = log ∫ p(x|z) p(z) dz is intractable: the mean of p(x|z) over samples of the prior p(z), unbiased "
        f"as it is, is below it: with {prior_misses} nats. Hardly any z of the prior explains an image; which "
        "ones do says p(z|x) = p(x, z) / p(x), and that asks for p(x) again: a circle. q(z|x), learned, breaks it.",
        f"Annealed importance sampling (AIS), another method, on the first {len(difference)} of them: above importance "
        f"sampling (IS) by a median of {median:.2f} nats, at most {largest:.1f} ± {largest_se:.1f}, by more than two "
        f"standard errors on {int(above.sum())}. Both are lower bounds in expectation: the higher one is the better.",
        ACCOUNTS,
    )
    numbers: dict[str, Any] = {"images": len(x), "importance_samples": samples}
    numbers |= elbo.numbers("elbo") | likelihood.numbers("log_likelihood") | mean.numbers("gap")
    numbers |= encoder.numbers("amortisation") | form.numbers("approximation") | missed.numbers("missed_by_q")
    numbers |= {"smallest_gap": least, "smallest_gap_se": least_se, "gaps_below_zero_by_2_se": below}
    numbers["climb"] = {str(k): value.numbers("above_elbo") for k, value in climb.items()}
    numbers["missed_by_prior"] = {str(k): value.numbers("nats") for k, value in missing.items()}
    numbers |= ais.numbers("annealed_minus_importance") | {"annealed_minus_importance_median": median}
    captions = (
        "What the mean over k samples misses of log p(x): of the prior, and of q, where k = 1 is the ELBO.",
        "log p(x) - ELBO of each image.",
        "AIS against importance sampling on some images, ± 2 standard errors.",
    )
    draw = partial(_draw_gap, misses=misses, gaps=gaps, difference=difference, errors=difference_se)
    return Claim("gap", title, equations.GAP, words, numbers, pictures=charts("gap", captions, draw))


def _chosen(context: Context, x: Tensor) -> str:
    """Which images a number is of; the page's own ELBO is of the whole split."""
    if len(x) == len(context.test):
        return f"All {len(x)} test images"
    return f"{len(x)} random ones of {len(context.test):,} test images (not the whole split of reports/metrics.json)"


def bound_at(weights: Tensor, k: int) -> Tensor:
    """IWAE-k from log weights [K, B]: its mean over K // k disjoint groups, [B]."""
    groups = len(weights) // k
    grouped = weights[: groups * k].view(groups, k, -1).movedim(1, 0)  # [k, groups, B]
    return importance_weighted_bound(grouped).mean(0)


@torch.no_grad()
def _weights(
    context: Context,
    x: Tensor,
    samples: int,
    stream: str,
    proposal: LaplaceProposal | DiagonalGaussian | None = None,
    prior: bool = False,
) -> Tensor:
    """log w of samples of q(z|x), of a proposal, or of the prior (then log p(x|z)): [K, B], float64, on the CPU."""
    generator, model = context.generator(stream), context.model
    chunk, parts = max(1, DECODED // len(x)), []
    for start in range(0, samples, chunk):
        shape = (min(chunk, samples - start), len(x), model.latent_dim)
        noise = torch.randn(shape, generator=generator).to(context.device)
        if isinstance(proposal, LaplaceProposal):
            spread = context.normal(f"{stream} {start}", *shape[:2], DEGREES).square().sum(-1)
            parts.append(proposal.log_weights(model, x, noise, spread, start, samples).cpu())
        elif prior:
            parts.append(conditional_log_likelihood(model, x, model.prior.sample(noise)).double().cpu())
        else:
            parts.append(log_weights(model, x, noise, proposal).double().cpu())
    return torch.cat(parts)


def _draw_gap(
    first: Any,
    middle: Any,
    right: Any,
    misses: dict[str, dict[int, Measured]],
    gaps: Tensor,
    difference: Tensor,
    errors: Tensor,
) -> None:
    for name, found in misses.items():
        values, spread = [m.value for m in found.values()], [m.se for m in found.values()]
        first.errorbar(list(found), values, spread, marker="o", markersize=3, capsize=2, label=name)
    first.legend(title="samples of the")
    first.set(xscale="log", yscale="log", xlabel="k", ylabel="nats below log p(x)", title="Estimates of log p(x)")
    middle.hist(gaps.numpy(), bins=30, color="C2")
    middle.axvline(0, color=INK, linewidth=1.2)
    middle.set(xlabel="log p(x) - ELBO, nats", ylabel="images", title="The gap of each image")
    right.errorbar(range(len(difference)), difference.numpy(), 2 * errors.numpy(), fmt="o", markersize=3, capsize=2)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set(xlabel="image", ylabel="nats", title="AIS - IS, ± 2 standard errors")


def terms(context: Context) -> Claim:
    """The two terms on test images, along the training, and the KL of every latent dimension."""
    title = "The ELBO is a reconstruction term minus a rate"
    if context.model.deterministic:
        return Claim("terms", title, equations.TERMS, (NO_BOUND,))
    x = context.tested(context.options.images)
    with torch.no_grad():
        noise, posterior = context.normal("terms", len(x), context.model.latent_dim), context.model.encode(x)
        found = elbo_terms(context.model, x, noise)
        by_dimension = context.model.prior.marginal_kl(posterior, posterior.rsample(noise))
    by_densities = _weights(context, x, BOUND_DRAWS, "densities").mean(0)
    difference = Measured.of(found.elbo.double().cpu() - by_densities)
    elbo, reconstruction, rate = map(Measured.of, (found.elbo, found.reconstruction, found.kl))
    (first, last), beta = (context.history[i].validation_kl or 0.0 for i in (0, -1)), context.history[-1].beta
    aim = "the bound IWAE-k (β = 1)" if context.objective == "iwae" else f"reconstruction - β KL (β = {beta:g})"
    words = (
        f"{_chosen(context, x)}: {reconstruction.text()} - {rate.text()} = {elbo.text()} nats per image. The rate, "
        f"{rate.value / math.log(2):.1f} bits, is the most that the latents can hold about an image on average.",
        f"KL of the validation images: {first:.1f} nats after the first epoch, {last:.1f} after the last. Training "
        f"does not minimise the KL, it maximises {aim}: the KL rises where a nat of it gains more than β nats of "
        "reconstruction, and falls where less. The path of one training is not a rate-distortion curve: that has, at "
        "each rate, the least distortion of all models, trained to the end.",
        f"The same bound from the densities alone, with no KL in closed form, differs by {difference.text()} nats.",
    )
    numbers: dict[str, Any] = {"images": len(x)} | elbo.numbers("elbo") | reconstruction.numbers("reconstruction")
    numbers |= rate.numbers("rate") | difference.numbers("terms_minus_densities")
    numbers |= {"first_validation_kl": first, "last_validation_kl": last}
    numbers["kl_per_dimension"] = by_dimension.double().mean(0).cpu().tolist()
    captions = (
        "The bound and its reconstruction term, by epoch.",
        "The path of training on the validation split: rate against distortion.",
        "The KL of each latent dimension to the prior's marginal; their sum is the KL under N(0, I).",
    )
    draw = partial(_draw_terms, context=context, numbers=numbers)
    return Claim("terms", title, equations.TERMS, words, numbers, pictures=charts("terms", captions, draw))


def _draw_terms(left: Any, middle: Any, right: Any, context: Context, numbers: dict[str, Any]) -> None:
    series = {}
    for split in ("train", "validation"):
        for key, name in (("elbo", context.objective.upper()), ("reconstruction", "reconstruction")):
            series[f"{name}, {split}"] = [(row.epoch, getattr(row, f"{split}_{key}")) for row in context.history]
    lines(left, series)
    left.set(xlabel="epoch", ylabel="nats per image", title="Training")
    path = [(row.validation_kl, -row.validation_reconstruction) for row in context.history]
    middle.plot(*zip(*path, strict=True), marker=".", label="by epoch")
    middle.plot(*path[-1], "o", color=INK, label="last epoch")
    middle.legend()
    middle.set(xlabel="rate: KL, nats", ylabel="distortion: -reconstruction, nats", title="Validation during training")
    bars(right, {str(z): kl for z, kl in enumerate(numbers["kl_per_dimension"])})
    right.set(xlabel="latent dimension", ylabel="mean KL, nats", title="Where the rate goes")


def asymmetry(_: Context | None = None) -> Claim:
    """Two Gaussians both ways, and a mixture fitted by one Gaussian both ways."""
    p, mean = mixture(), sum(weight * mean for weight, mean, _ in PARTS)
    covering = mean, math.sqrt(sum(weight * (sd**2 + m**2) for weight, m, sd in PARTS) - mean**2)  # p's own moments
    fits = {"KL(p ‖ q), covers": covering, "KL(q ‖ p), seeks a mode": mode_seeking(p)}
    found = {name: (*fit, kl(p, gaussian(*fit)), kl(gaussian(*fit), p)) for name, fit in fits.items()}
    there, back = kl_of_gaussians(0, 1, 1, 2), kl_of_gaussians(1, 2, 0, 1)
    rng = np.random.default_rng(0)
    shift = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 1, PAIRS)
    log_ratio = rng.normal(size=PAIRS) * 10.0 ** rng.uniform(-4, 0.3, PAIRS)  # some pairs are nearly equal
    least = float((0.5 * (np.expm1(2 * log_ratio) - 2 * log_ratio + shift**2)).min())
    title = "The KL is never negative and not symmetric"
    words = (
        f"Two Gaussians: KL(N(0, 1²) ‖ N(1, 2²)) = {there:.4f}, the other way round {back:.4f} nats. The smallest KL "
        f"of {PAIRS:,} random pairs of Gaussians is {least:.2e}.",
        "A mixture p fitted by one Gaussian q: the q with the least KL(p ‖ q) must cover all of p, the one with the "
        "least KL(q ‖ p) may leave a mode out. The ELBO's gap is of the second kind, KL(q(z|x) ‖ p(z|x)): posteriors "
        "come out too narrow rather than too wide.",
    )
    numbers: dict[str, Any] = {"kl_of_gaussians": there, "kl_of_gaussians_reversed": back}
    numbers["smallest_of_random_pairs"] = least
    for key, values in zip(("covering", "mode_seeking"), found.values(), strict=True):
        numbers[key] = dict(zip(("mean", "sd", "kl_p_q", "kl_q_p"), values, strict=True))
    header = ("q minimises", "mean", "standard deviation", "KL(p ‖ q), nats", "KL(q ‖ p), nats")
    rows = [(name, f"{m:.3f}", f"{s:.3f}", f"{pq:.4f}", f"{qp:.4f}") for name, (m, s, pq, qp) in found.items()]
    captions = "Two Gaussians: zero where they are equal, else positive, different both ways.", "One mixture, two fits."
    pictures = charts("divergence", captions, partial(_draw_fits, p=p, fits=fits))
    return Claim("divergence", title, equations.DIVERGENCE, words, numbers, (header, *rows), pictures)


def gaussian(mean: float, sd: float) -> Values:
    """Log density on the grid."""
    return -0.5 * ((GRID - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def mixture() -> Values:
    """Log density of p on the grid."""
    return np.logaddexp(*(math.log(w) + gaussian(mean, sd) for w, mean, sd in PARTS))


def kl(a: Values, b: Values) -> float:
    """KL(a || b) in nats of log densities on the grid, by the trapezoid rule."""
    return float(np.trapezoid(np.exp(a) * (a - b), GRID))


def kl_of_gaussians(mean: float, sd: float, other_mean: float, other_sd: float) -> float:
    """In closed form."""
    return math.log(other_sd / sd) + (sd**2 + (mean - other_mean) ** 2) / (2 * other_sd**2) - 0.5


def mode_seeking(p: Values) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian of least KL(q || p), by four rounds of an ever finer grid."""
    best, reach = (0.0, 1.5), (3.0, 1.4)
    for _ in range(4):
        means = np.linspace(best[0] - reach[0], best[0] + reach[0], 25)
        sds = np.linspace(max(0.05, best[1] - reach[1]), best[1] + reach[1], 25)
        best = min(((float(m), float(s)) for m in means for s in sds), key=lambda q: kl(gaussian(*q), p))
        reach = (reach[0] / 10, reach[1] / 10)
    return best


def _draw_fits(left: Any, right: Any, p: Values, fits: dict[str, tuple[float, float]]) -> None:
    sds = np.exp(np.linspace(math.log(0.3), math.log(3), 200))
    left.plot(sds, [kl_of_gaussians(0, s, 0, 1) for s in sds], label="KL(q ‖ p)")
    left.plot(sds, [kl_of_gaussians(0, 1, 0, s) for s in sds], label="KL(p ‖ q)")
    left.axhline(0, color=INK, linewidth=0.8)
    left.set(xlabel="s", ylabel="nats", title="q = N(0, s²), p = N(0, 1)", ylim=(-0.2, 4))
    right.fill_between(GRID, np.exp(p), color="#7d7d7d55", label="p")
    for name, fit in fits.items():
        right.plot(GRID, np.exp(gaussian(*fit)), label=f"q of least {name}")
    right.set(xlim=(-7, 7), xlabel="z", ylabel="density", title="One mixture, fitted both ways", ylim=(0, 0.85))
    left.legend()
    right.legend()
