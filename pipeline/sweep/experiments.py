"""Named changes to params.yaml, run as DVC experiments."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import Section, read_yaml, validate

EXPERIMENTS = "experiments.yaml"


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
    parse_params(wanted, f"{EXPERIMENTS}: {name}")
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
    """A value in Hydra's grammar: JSON without quotes around keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
