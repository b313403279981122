"""Strict reading: YAML files, and what pydantic finds wrong with them as lines a user understands.

The only module that reads YAML.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from vaeline.errors import UserError
from vaeline.io.safe_read import shown


class Section(BaseModel):
    """A section of a file: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as DVC's YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> Any:
    """Parse one YAML file; raises UserError where it is missing, not UTF-8 or not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text, named `source` in messages; raises UserError where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source}: is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None


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


def _line(root: type[Section], key: str, mistakes: list[ErrorDetails], overridable: bool) -> str:
    first = mistakes[0]
    found = repr(first["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
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
        case "value_error":
            return f"{key and key + ': '}{first['msg'].removeprefix('Value error, ')}"
        case "union_tag_not_found":
            return f"{key}: needs a kind, found {found}"
        case "union_tag_invalid":
            return f"{key}.kind: allowed: {context.get('expected_tags')}; found {context.get('tag')!r}"
        case "model_type" | "model_attributes_type":
            return f"{key and key + ': '}must be a section with keys, found {found}"
    messages = (mistake["msg"] for mistake in mistakes)
    forms = list(dict.fromkeys(m.partition(" should ")[2] or m for m in messages))  # "be 1", "have at most 2 items"
    rest = [form.removeprefix(f"{forms[0].partition(' ')[0]} ") for form in forms[1:]]
    return f"{key}: must {', or '.join([forms[0], *rest])}; found {found}"
