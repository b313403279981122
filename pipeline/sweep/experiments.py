"""Changes to params.yaml for `dvc exp run`: by key (`train.beta=4`), or named in experiments.yaml.

Hydra, by which DVC reads changes, gets nothing of what a user wrote: values are read as YAML, checked as params.yaml
is, and written as literals.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.safe_read import shown
from vaeline.io.yaml_config import Section, parse_yaml, read_yaml, validate

EXPERIMENTS = "experiments.yaml"
Values = dict[str, Any]  # by key path: {"train.beta": 0.5}
KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
OVERRIDE = re.compile(rf"(?P<sign>\+{{0,2}})(?P<key>{KEY.pattern})=(?P<value>.*)|~(?P<removed>{KEY.pattern})")


class Experiment(Section):
    """An entry of experiments.yaml."""

    about: str
    base: str | None = None  # another entry, whose params come first
    params: dict[str, Any]


def read_experiments(path: Path) -> dict[str, Experiment]:
    """Experiments by name; raises UserError where the file or an entry is wrong."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold experiments by name, found {content!r}")
    return {name: validate(Experiment, entry, f"{path}: {name}") for name, entry in content.items()}


def experiment_overrides(name: str, params: Any, experiments: Mapping[str, Experiment]) -> list[str]:
    """Arguments of `dvc exp run` that turn `params`, the content of params.yaml, into the experiment's.

    Raises UserError for an unknown name, and where params.yaml or the result is not valid.
    """
    if name not in experiments:
        raise UserError(f"experiment {name!r}: allowed: {', '.join(experiments)}")
    parse_params(params)
    chain = [name]
    while (base := experiments[chain[-1]].base) is not None:
        if base in chain or base not in experiments:
            raise UserError(f"{EXPERIMENTS}: {name}: base must be another experiment, found {base!r}")
        chain.append(base)
    wanted = params
    for entry in reversed(chain):
        wanted = overlay(wanted, experiments[entry].params)
    return checked_arguments(params, wanted, f"{EXPERIMENTS}: {name}")


def parse_overrides(overrides: Sequence[str], params: Any, source: str = "-S") -> list[str]:
    """Arguments of `dvc exp run` for overrides `KEY=VALUE` (VALUE in YAML; a leading + is as none) and `~KEY`.

    `params` is the content of params.yaml. Raises UserError, its lines beginning with `source`, for what is no key path
    of params.yaml or no value of it.
    """
    parse_params(params)
    values: Values = {}
    removed, mistakes = [], []
    for text in overrides:
        match = OVERRIDE.fullmatch(text)
        if match is None:
            mistakes.append(f"{source}: {shown(repr(text))}: allowed: KEY=VALUE, a key path of params.yaml, or ~KEY")
        elif key := match["removed"]:
            removed.append(key)
        else:
            key = match["key"]
            mistakes += [f"{source}: {key}: given twice"] if key in values else []
            values[key] = parse_yaml(match["value"], f"{source}: {key}")
    if mistakes := mistakes or [f"{source}: {line}" for line in nested_keys([*values, *removed])]:
        raise UserError("\n".join(mistakes))
    wanted = with_values(params, values)
    for key in removed:
        wanted = _without(wanted, *key.split("."))
    return checked_arguments(params, wanted, source)


def changed_keys(overrides: Sequence[str], params: Any) -> list[str]:
    """The key paths of params.yaml that overrides change. Raises UserError as `parse_overrides`."""
    return [argument.lstrip("+~").partition("=")[0] for argument in parse_overrides(overrides, params)[1::2]]


def nested_keys(keys: Iterable[str]) -> list[str]:
    """A line for each key path that lies inside another one."""
    pairs = itertools.permutations(dict.fromkeys(keys), 2)
    return [f"{key}: is inside {outer}, which is changed too" for key, outer in pairs if key.startswith(f"{outer}.")]


def with_values(params: Any, values: Values) -> Any:
    """The content of params.yaml with these values; a section that is given a `kind` is replaced whole."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        section = changes
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return overlay(params, changes)


def _without(section: dict[str, Any], first: str, *rest: str) -> dict[str, Any]:
    """A section without the value at a key path; one that is not there changes nothing."""
    if rest and isinstance(section.get(first), dict):
        return section | {first: _without(section[first], *rest)}
    return {key: value for key, value in section.items() if rest or key != first}


def checked_arguments(params: Any, wanted: Any, source: str) -> list[str]:
    """Arguments of `dvc exp run` that turn `params` into `wanted`. Raises UserError where that is not valid."""
    parse_params(wanted, source)
    return override_arguments(params, wanted)


def overlay(below: Any, above: Any) -> Any:
    """Mappings are merged key by key, unless the upper one gives a kind; anything else replaces what it covers."""
    if not isinstance(below, dict) or not isinstance(above, dict) or "kind" in above:
        return above
    return below | {key: overlay(below.get(key), value) for key, value in above.items()}


def override_arguments(now: dict[str, Any], wanted: dict[str, Any], path: str = "") -> list[str]:
    """Arguments of `dvc exp run` that turn one content of params.yaml, or of its section `path`, into the other."""
    arguments = [argument for key in sorted(now.keys() - wanted.keys()) for argument in ("-S", f"~{path}{key}")]
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(now.get(key), dict):
            arguments += override_arguments(now[key], value, f"{path}{key}.")
        elif key not in now or now[key] != value:
            arguments += ["-S", f"++{path}{key}={_literal(value)}"]
    return arguments


def _literal(value: Any) -> str:
    """A value in Hydra's grammar, in which a backslash means itself but before a quote."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if "${" in value:
        raise UserError(f"{shown(repr(value))}: ${{ would be replaced by Hydra; allowed: text without it")
    text = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', r"\""), value)
    return f'"{text}"'
