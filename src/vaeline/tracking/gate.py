"""The gate that a model passes to become the champion: a pure decision on evidence."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Evidence:
    """What is known of a model, by digest: how it was trained and what it measured."""

    digest: str
    data_digest: str
    likelihood: str  # its kind: nats of different likelihoods are nats of different things
    objective: str
    validation_elbo: float  # nats per image; NaN where it is not known
    active_units: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # everything that was measured


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why or why not."""

    promote: bool
    reasons: tuple[str, ...]


def decide(challenger: Evidence, champion: Evidence | None, minimum_active_units: int) -> Decision:
    """Promote a sound model that is better than the champion on the same data, or the first sound one."""
    if champion is not None and champion.digest == challenger.digest:
        return Decision(False, ("it is the champion already",))
    faults = tuple(_faults(challenger, minimum_active_units))
    if faults or champion is None:
        return Decision(not faults, faults or ("no champion before it",))
    if different := tuple(_differences(challenger, champion)):
        return Decision(False, different)
    better = challenger.validation_elbo > champion.validation_elbo
    comparison = (
        f"validation ELBO {challenger.validation_elbo:.4f} nats per image, {'' if better else 'not '}above "
        f"the champion's {champion.validation_elbo:.4f}"
    )
    return Decision(better, (comparison,))


def _faults(model: Evidence, minimum_active_units: int) -> Iterator[str]:
    """What is wrong with a model on its own."""
    broken = sorted(name for name, value in model.metrics.items() if not math.isfinite(value))
    if broken:
        yield f"not finite: {', '.join(broken)}"
    if model.objective == "autoencoder":
        yield f"objective '{model.objective}' has no ELBO and no prior to sample from"
        return
    if not math.isfinite(model.validation_elbo) and not broken:
        yield "no finite validation ELBO"
    if model.active_units < minimum_active_units:
        yield f"{model.active_units} active units, register.minimum_active_units is {minimum_active_units}"


def _differences(challenger: Evidence, champion: Evidence) -> Iterator[str]:
    """Why two models cannot be compared."""
    way_out = "register under another name, or remove the alias champion"
    if challenger.data_digest != champion.data_digest:
        found, other = challenger.data_digest[:12], champion.data_digest[:12] or "unknown"
        yield f"not compared: its data is {found}, the champion's {other}; {way_out}"
    if challenger.likelihood != champion.likelihood:
        found, other = challenger.likelihood, champion.likelihood or "unknown"
        yield f"not compared: its likelihood is {found}, the champion's {other}; {way_out}"
    if not math.isfinite(champion.validation_elbo):
        yield f"not compared: the champion has no recorded validation ELBO; {way_out}"
