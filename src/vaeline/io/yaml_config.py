"""Strict YAML 1.2, read as DVC reads it, and pydantic's errors as one line a key. The only module that reads YAML."""

import difflib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from vaeline.errors import UserError
from vaeline.io.safe_read import DEEPEST, read_bounded, shown

MOST_BYTES, MOST_VALUES = 1_000_000, 100_000


class Section(BaseModel):
    """A section of a file: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


S = TypeVar("S", bound=Section)


def read_yaml(path: Path) -> Any:
    """Content of one YAML file. Raises UserError where it is missing, too large, not UTF-8 or not YAML."""
    content = read_bounded(path, MOST_BYTES)
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None


def parse_yaml(text: str, source: str) -> Any:
    """Content of YAML 1.2 text, named `source` in messages, as DVC reads it.

    Raises UserError where it is not YAML, has a key twice in a mapping, is nested too deeply or grows by aliases.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_size(text, source)
            return YAML(typ="safe").load(text)
        except MarkedYAMLError as error:
            reason, mark = error.problem or error.context, error.problem_mark
        except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason, mark = str(error).partition("\n")[0], None  # `!!int abc`, 5,000 digits, 2026-99-99
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise UserError(f"{source}: is not valid YAML{where}: {shown(reason)}")


def _check_size(text: str, source: str) -> None:
    """Refuse deep nesting, and more values than allowed, an alias counted as a copy of what it stands for."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, values before it
    sizes: dict[str | None, int] = {}  # values by anchor; within itself, more than allowed
    values = 0
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, AliasEvent):
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, values))
            sizes[event.anchor] = MOST_VALUES
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = values - before
        values += 1
        if len(open_nodes) > DEEPEST:
            raise UserError(f"{source}: is nested deeper than {DEEPEST} levels")
        if values > MOST_VALUES:
            raise UserError(f"{source}: holds more than {MOST_VALUES:,} values, aliases counted as copies")


def validate(section: type[S], content: Any, where: str) -> S:
    """Check parsed content against a section; raises UserError with one line a key path, each led by `where`."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        by_key: dict[str, list[ErrorDetails]] = {}  # the alternatives of a union of plain types share a line
        for details in error.errors(include_url=False):
            by_key.setdefault(".".join(_path(section, details)), []).append(details)
        ours = Path(where).name == "params.yaml"  # what `dvc exp run -S` changes
        lines = [f"{where}: {_line(section, key, mistakes, ours)}" for key, mistakes in by_key.items()]
        raise UserError("\n".join(lines)) from None


def _path(root: type[Section], details: ErrorDetails) -> list[str]:
    """The key path in the file: pydantic's location without the names of union members."""
    *parents, last = details["loc"] or ("",)
    known = {name for owner in _owners(root).values() for name in _keys(owner)}
    kept = [str(part) for part in parents if isinstance(part, int) or part in known]
    ends = details["type"] == "extra_forbidden" or isinstance(last, int) or last in known
    return [*kept, shown(last, most=60)] if ends else kept


def _owners(root: type[Section]) -> dict[str, type[Section]]:
    """Every section and variant by its name in pydantic's location: a section's key, a variant's kind."""
    owners = {"": root}
    for name, field in root.model_fields.items():
        for cls in _sections(field.annotation):
            kind = cls.model_fields.get("kind")
            names = get_args(kind.annotation) if kind else (field.alias or name,)
            owners |= dict.fromkeys(names, cls) | {k: v for k, v in _owners(cls).items() if k}
    return owners


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _keys(owner: type[Section]) -> list[str]:
    return [field.alias or name for name, field in owner.model_fields.items()]


def _shown_value(value: object) -> str:
    try:
        return shown(repr(value), most=60)
    except ValueError:  # Python prints no number of so many digits
        return "a number of more than 4,300 digits"


def _line(root: type[Section], key: str, mistakes: list[ErrorDetails], overridable: bool) -> str:
    first = mistakes[0]
    found = _shown_value(first["input"])
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            owners, parents = _owners(root), ("", *first["loc"][:-1])
            allowed = _keys(owners[next(str(part) for part in reversed(parents) if str(part) in owners)])
            near = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            way_out = f" (to remove it: -S '~{key}')" if overridable else ""
            return f"{key}: unknown key; {hint}allowed: {', '.join(allowed)}{way_out}"
        case "missing":
            return f"{key}: missing"
        case "invalid_key":
            return f"{key and key + ': '}keys must be strings; found {found}"
        case "value_error":
            return f"{key and key + ': '}{first['msg'].removeprefix('Value error, ')}"
        case "union_tag_not_found":
            return f"{key}: needs a kind, found {found}"
        case "union_tag_invalid":
            return f"{key}.kind: allowed: {context.get('expected_tags')}; found {_shown_value(context.get('tag'))}"
        case "model_type" | "model_attributes_type":
            return f"{key and key + ': '}must be a section with keys, found {found}"
    messages = (mistake["msg"] for mistake in mistakes)
    forms = list(dict.fromkeys(m.partition(" should ")[2] or m for m in messages))  # "be 1", "have at most 2 items"
    rest = [form.removeprefix(f"{forms[0].partition(' ')[0]} ") for form in forms[1:]]
    return f"{key}: must {', or '.join([forms[0], *rest])}; found {found}"
