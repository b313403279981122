"""What a sweep varies: `train.beta=0.5,1,2` (choices) or `train.beta=0.1..10` (a range), and every combination checked.

Values are YAML, so a whole section can be one: `model.network={kind: mlp, hidden: [400]},{kind: gated}`.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pipeline.sweep.experiments import laid_over
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import parse_yaml

Values = dict[str, Any]  # of one trial, by key path: {"train.beta": 0.5}

FORM = "allowed: KEY=VALUE,VALUE,... or KEY=[log:]LOW..HIGH"
KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")
MOST_CORNERS = 1024  # of a search space that are checked; a trial is checked anyway when it is drawn


@dataclass(frozen=True)
class Choices:
    """A key and the values it takes."""

    key: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """What stands for the whole when the space is checked."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A key and an interval, both ends included, for a search."""

    key: str
    low: float
    high: float
    log: bool  # drawn evenly by the logarithm
    whole: bool  # whole numbers only

    @property
    def ends(self) -> tuple[float, float]:
        """What stands for the whole when the space is checked."""
        return self.low, self.high


Axis = Choices | Range


def parse_axes(assignments: Sequence[str], params: Any) -> list[Axis]:
    """Read `KEY=VALUES` arguments; `params`, the content of params.yaml, tells whole from continuous ranges.

    Raises UserError with a line for each that is wrong.
    """
    axes: list[Axis] = []
    mistakes: list[str] = []
    for assignment in assignments:
        try:
            axes.append(_axis(assignment, params))
        except UserError as error:
            mistakes.append(str(error))
    keys = [axis.key for axis in axes]
    mistakes += [f"{key}: given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    mistakes += [
        f"{inner}: is inside {outer}, which is varied too"
        for inner, outer in itertools.permutations(dict.fromkeys(keys), 2)
        if inner.startswith(f"{outer}.")
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return axes


def _axis(assignment: str, params: Any) -> Axis:
    key, equals, text = assignment.partition("=")
    if not equals or not KEY.fullmatch(key) or not text.strip():
        raise UserError(f"{assignment!r}: is no assignment; {FORM}")
    if match := RANGE.fullmatch(text.strip()):
        return _range(key, match, params)
    values: list[Any] = parse_yaml(f"[{text}]", f"{key}: {text!r}")
    if any(isinstance(value, str) and RANGE.fullmatch(value) for value in values):
        raise UserError(f"{key}: found a range among values, {text!r}; {FORM}")
    if not values:
        raise UserError(f"{key}: found no value; {FORM}")
    return Choices(key, tuple({json.dumps(value): value for value in values}.values()))


def _range(key: str, match: re.Match[str], params: Any) -> Range:
    log, (low, high) = bool(match[1]), (float(match[2]), float(match[3]))
    if low >= high or (log and low <= 0):
        raise UserError(f"{key}: found {match[0]!r}, allowed: LOW below HIGH{', both above 0' if log else ''}")
    whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (match[2], match[3]))
    now = reduce(lambda section, part: section.get(part) if isinstance(section, dict) else None, key.split("."), params)
    if whole and not isinstance(now, float):
        return Range(key, int(low), int(high), log, True)
    return Range(key, low, high, log, False)


def varied(axes: Iterable[Axis]) -> list[str]:
    """The keys that take more than one value."""
    return [axis.key for axis in axes if isinstance(axis, Range) or len(axis.values) > 1]


def grid(axes: Sequence[Axis]) -> list[Values]:
    """Every combination, the last key changing fastest. Raises UserError for a range."""
    if ranges := [axis.key for axis in axes if isinstance(axis, Range)]:
        raise UserError(f"{', '.join(ranges)}: a range has no grid; give values, or --search random or bayesian")
    return list(corners(axes))


def corners(axes: Sequence[Axis]) -> Iterator[Values]:
    """Every combination of the choices and of the ranges' ends."""
    for values in itertools.product(*(axis.ends for axis in axes)):
        yield dict(zip((axis.key for axis in axes), values, strict=True))


def overlaid(params: Any, values: Mapping[str, Any]) -> Any:
    """The content of params.yaml with these values; a section that is given a `kind` is replaced whole."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        section = changes
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return laid_over(params, changes)


def check(params: Any, combinations: Iterable[Values]) -> None:
    """Check params.yaml and every combination; raises UserError with one line for each different mistake."""
    parse_params(params)
    lines: dict[str, None] = {}
    for values in combinations:
        try:
            parse_params(overlaid(params, values), "sweep")
        except UserError as error:
            lines |= dict.fromkeys(str(error).splitlines())
    if lines:
        raise UserError("\n".join(lines))
