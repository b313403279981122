"""Strict YAML 1.2, read as DVC reads it, and pydantic's errors as one line a key. The only module that reads YAML."""

import difflib
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from vaeline.errors import UserError
from vaeline.io.safe_read import DEEPEST, parse_json, read_bounded, shown

MOST_BYTES, MOST_VALUES = 1_000_000, 20_000  # read within a second
AMBIGUOUS = re.compile(
    r"[-+]?(0[\d_]+|0b[01_]+|0o[0-7_]+|0x[\da-fA-F_]+|\d+_[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)?"
)  # numbers, as 010: 8 or 10
Count = Annotated[int, Field(ge=1, lt=2**63)]
Location = Annotated[str, Field(min_length=1)]  # of a file or folder
Fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
BY_KIND = Field(discriminator="kind")
LONGEST = 3000  # characters of a value; Python shows no number of more than 4,300 digits, and 0x reads any


class Section(BaseModel):
    """A section of a file: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        for key in content if isinstance(content, dict) else ():
            if key not in allowed:
                near = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f"did you mean '{near[0]}'? " if near else ""
                context = {"key": shown(key, most=60), "text": f"unknown key; {hint}allowed: {', '.join(allowed)}"}
                raise PydanticCustomError("unknown_key", "{text}", context)
        return content


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

    Raises UserError where it is not YAML, has a key twice in a mapping, is nested too deeply or grows by aliases, and
    for numbers that readers take differently: 010 (8 in YAML 1.1), 0x10, 1_000.
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
    """Refuse deep nesting, long or ambiguous values, and too many, an alias counted as a copy of what it names."""
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
        elif isinstance(event, ScalarEvent) and len(event.value) > LONGEST:
            raise UserError(f"{source}: holds a value of more than {LONGEST:,} characters")
        elif isinstance(event, ScalarEvent) and not event.style and AMBIGUOUS.fullmatch(event.value):
            where = f"{source}: line {event.start_mark.line + 1}: found {shown(event.value, most=60)}"
            raise UserError(f"{where}; allowed: decimal numbers without leading zeros, or text in quotes")
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
        for mistake in error.errors(include_url=False):
            by_key.setdefault(_key_path(content, mistake), []).append(mistake)
        lines = []
        for key, details in by_key.items():
            overridable = details[0]["type"] == "unknown_key" and Path(where).name == "params.yaml"
            way_out = f" (to remove it: -S '~{key}')" if overridable else ""  # for `dvc exp run`
            lines.append(f"{where}: {key and key + ': '}{_mistake(details)}{way_out}")
        raise UserError("\n".join(lines)) from None


def validate_json(section: type[S], content: bytes, path: Path) -> S:
    """Parse and check a JSON file that no one writes by hand; raises UserError, in one line, for the first mistake."""
    try:
        return validate(section, parse_json(content, str(path)), str(path))
    except UserError as error:
        raise UserError(str(error).splitlines()[0]) from None


def _key_path(content: Any, details: ErrorDetails) -> str:
    """Key path in the file: pydantic's location without the names of union members, which the content lacks."""
    kept = []
    for part in details["loc"]:
        keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
        if part in keys or (details["type"] == "missing" and part == details["loc"][-1]):
            kept.append(str(part))
        content = content[part] if part in keys else content
    last = {"unknown_key": details.get("ctx", {}).get("key"), "union_tag_invalid": "kind"}.get(details["type"])
    return ".".join([*kept, last] if last else kept)


def _mistake(mistakes: list[ErrorDetails]) -> str:
    """What is wrong, what was found and what is allowed, of the mistakes at one key."""
    message, context = mistakes[0]["msg"], mistakes[0].get("ctx", {})
    match mistakes[0]["type"]:
        case "missing":
            return "missing"
        case "unknown_key" | "value_error":
            return message.removeprefix("Value error, ")
        case "union_tag_invalid":
            return f"allowed: {context['expected_tags']}; found {shown(repr(context['tag']), most=60)}"
        case "union_tag_not_found":
            forms = ["have a kind"]
        case "model_type" | "model_attributes_type":
            forms = ["be a section with keys"]
        case _:
            messages = (mistake["msg"] for mistake in mistakes)
            forms = list(dict.fromkeys(m.partition(" should ")[2] or m for m in messages))  # "be 1", "have 2 items"
    rest = [form.removeprefix(f"{forms[0].partition(' ')[0]} ") for form in forms[1:]]
    return f"must {', or '.join([forms[0], *rest])}; found {shown(repr(mistakes[0]['input']), most=60)}"
