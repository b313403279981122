"""Random and Bayesian search by optuna: what to try next is a function of the space, the seed and what is known.

No study is kept: it is put together anew from the sweep's own trials each time, so there is one truth to resume from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.sweep.space import Axis, Choices, Values
from vaeline.errors import UserError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Method = Literal["random", "bayesian"]


@dataclass(frozen=True)
class Known:
    """A trial that has been drawn: its values, its score (None: not there yet), and whether it failed."""

    values: Values
    score: float | None
    failed: bool = False


def require_optuna() -> None:
    """Raise UserError where optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("--search needs optuna: pip install vaeline[search]") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(axes: Sequence[Axis], method: Method, seed: int, known: Sequence[Known], maximise: bool) -> Values:
    """The values of trial number `len(known)`.

    Bayesian is TPE (Bergstra et al. 2011); trials that are still running count as bad ones (constant liar), so that
    parallel ones keep apart. Each number has its own random stream: a resumed search repeats nothing.
    """
    import optuna

    stream = (seed * 1_000_003 + len(known)) % 2**32  # what a generator takes
    sampler: optuna.samplers.BaseSampler
    if method == "random":
        sampler = optuna.samplers.RandomSampler(seed=stream)
    else:
        sampler = optuna.samplers.TPESampler(seed=stream, constant_liar=True)
    study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
    space = {axis.key: _distribution(axis) for axis in axes}
    for trial in known:
        study.add_trial(_told(trial, axes, space))
    drawn = study.ask(space).params
    return {axis.key: axis.values[drawn[axis.key]] if isinstance(axis, Choices) else drawn[axis.key] for axis in axes}


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, Choices):
        return CategoricalDistribution(range(len(axis.values)))  # a value may be a list or a section
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _told(trial: Known, axes: Sequence[Axis], space: "dict[str, BaseDistribution]") -> "optuna.trial.FrozenTrial":
    from optuna.trial import TrialState, create_trial

    state = TrialState.RUNNING if trial.score is None else TrialState.COMPLETE
    params: dict[str, Any] = {
        axis.key: _index(axis, trial.values[axis.key]) if isinstance(axis, Choices) else trial.values[axis.key]
        for axis in axes
    }
    return create_trial(
        state=TrialState.FAIL if trial.failed else state,
        value=None if trial.failed else trial.score,
        params=params,
        distributions=space,
    )


def _index(axis: Choices, value: Any) -> int:
    return [json.dumps(choice) for choice in axis.values].index(json.dumps(value))
