"""Search space of a sweep: `train.beta=0.5,1,2` (choices) or `train.beta=0.1..10` (a range) as optuna's distributions.

Values are YAML, so a whole section can be one: `model.network={kind: mlp, hidden: [400]},{kind: gated}`. A choice is
kept as JSON text, which tells 1, 1.0 and true apart and which every storage of optuna takes.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.sweep.experiments import KEY, Values, checked_arguments, nested_keys, with_values
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import parse_yaml

Space = dict[str, BaseDistribution]  # by key path

MOST_TRIALS = 10_000  # of a grid: each is checked before the first one runs
FORM = "allowed: KEY=VALUE,VALUE,... or KEY=[log:]LOW..HIGH"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")


def parse_space(assignments: Sequence[str], params: Any) -> Space:
    """Read `KEY=VALUES` arguments; `params`, the content of params.yaml, tells whole from continuous ranges.

    Raises UserError with a line for each that is wrong.
    """
    space: Space = {}
    mistakes: list[str] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        try:
            if not equals or not KEY.fullmatch(key) or not text.strip():
                raise UserError(f"{assignment!r}: is no assignment; {FORM}")
            distribution = _parse_values(key, text, params)
            if key in space:
                raise UserError(f"{key}: given twice")
            space[key] = distribution
        except UserError as error:
            mistakes.append(str(error))
    if mistakes := mistakes + nested_keys(space):
        raise UserError("\n".join(mistakes))
    return space


def _parse_values(key: str, text: str, params: Any) -> BaseDistribution:
    if match := RANGE.fullmatch(text.strip()):
        log, low, high = bool(match[1]), float(match[2]), float(match[3])
        if low >= high or (log and low <= 0):
            raise UserError(f"{key}: found {match[0]!r}, allowed: LOW below HIGH{', both above 0' if log else ''}")
        for part in key.split("."):
            params = params.get(part) if isinstance(params, dict) else None
        if not isinstance(params, float) and not re.search(r"[.eE]", match[2] + match[3]):
            return IntDistribution(int(match[2]), int(match[3]), log=log)
        return FloatDistribution(low, high, log=log)
    values: list[Any] = parse_yaml(f"[{text}]", f"{key}: {text!r}")
    if not values or any(isinstance(value, str) and RANGE.fullmatch(value) for value in values):
        raise UserError(f"{key}: found {text!r}, no values or a range among them; {FORM}")
    try:
        return CategoricalDistribution(tuple(dict.fromkeys(map(json.dumps, values))))
    except TypeError:  # a date, bytes, a set
        raise UserError(f"{key}: found {text!r}, allowed: numbers, true, false, null, or text in quotes") from None


def to_values(params: Mapping[str, Any]) -> Values:
    """The values that optuna's parameters of a trial stand for."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}


def to_params(space: Space, values: Values) -> dict[str, Any]:
    """Optuna's parameters for these values."""
    choices = {key for key, distribution in space.items() if isinstance(distribution, CategoricalDistribution)}
    return {key: json.dumps(value) if key in choices else value for key, value in values.items()}


def varied(space: Space) -> list[str]:
    """The keys that take more than one value."""
    return [key for key, distribution in space.items() if not distribution.single()]


def grid(space: Space) -> list[Values]:
    """Every combination, the last key changing fastest. Raises UserError for a range, and for more than MOST_TRIALS."""
    if ranges := [key for key, values in space.items() if not isinstance(values, CategoricalDistribution)]:
        raise UserError(f"{', '.join(ranges)}: a range has no grid; give values, or --search random or bayesian")
    sizes: list[int] = [len(values.choices) for values in space.values()]  # type: ignore[attr-defined]
    if (count := math.prod(sizes)) > MOST_TRIALS:
        raise UserError(f"found a grid of {count:,} trials, allowed: {MOST_TRIALS:,}; --search random draws some")
    return list(corners(space))


def corners(space: Space) -> Iterator[Values]:
    """Every combination of the choices and of the ranges' ends."""
    ends = (d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high) for d in space.values())  # type: ignore[attr-defined]
    for params in itertools.product(*ends):
        yield to_values(dict(zip(space, params, strict=True)))


def check(params: Any, combinations: Iterable[Values]) -> None:
    """Check params.yaml and every combination; raises UserError with one line for each different mistake."""
    parse_params(params)
    lines: dict[str, None] = {}
    for values in combinations:
        try:
            checked_arguments(params, with_values(params, values), "sweep")
        except UserError as error:
            lines |= dict.fromkeys(str(error).splitlines())
    if lines:
        raise UserError("\n".join(lines))


def show(value: Any) -> str:
    """A value for people: `0.00213`, `gated`, `[400, 400]`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and "kind" in value:
        rest = ", ".join(f"{key} {show(inner)}" for key, inner in value.items() if key != "kind")
        return f"{value['kind']}{f' ({rest})' if rest else ''}"
    return value if isinstance(value, str) else json.dumps(value)
