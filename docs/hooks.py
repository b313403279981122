"""MkDocs hooks: reference pages made from the code when the site is built, pictures of benchmarks/, formulas."""

import inspect
import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from vaeline import config
from vaeline.io.yaml_config import Section

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results"
PARTS = re.compile(r"<!-- (params|commands) -->")


def on_files(files: Files, config: Any) -> Files:
    """The pictures of benchmarks/results that the pages show."""
    for path in sorted((ROOT / RESULTS).rglob("*.png")):
        name = path.relative_to(ROOT / "benchmarks").as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its generated parts; pictures are named as they lie in the repository."""
    text = markdown.replace(f"../{RESULTS}/", "results/")
    return PARTS.sub(lambda found: {"params": params, "commands": commands}[found[1]](), text)


def math_fence(source: str, *_: Any, **__: Any) -> str:
    """A fenced block of LaTeX as MathML, which browsers typeset themselves."""
    return f'<div class="math">{convert(source, display="block")}</div>'


def params() -> str:
    """Every key of params.yaml: what is allowed, its default, what it means."""
    fields = config.Params.model_fields.items()
    return "\n\n".join(_section(field.alias or name, field.annotation) for name, field in fields)


def _section(path: str, section: type[Section], variant: str = "") -> str:
    schema, comments, inner = section.model_json_schema(), _comments(section), list[str]()
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        sections = [kind for kind in _members(field.annotation) if isinstance(kind, type) and issubclass(kind, Section)]
        if sections:
            kinds = [f"`{kind}`" for part in sections for kind in get_args(part.model_fields["kind"].annotation)]
            rows.append(f"| `{name}.kind` | {', '.join(kinds)} | {_default(field)} | its further keys stand below |")
            inner += [_section(f"{path}.{name}", part, variant="kind") for part in sections]
        elif name != variant:
            allowed = _allowed(schema["properties"][name])
            rows.append(f"| `{name}` | {allowed} | {_default(field)} | {comments.get(name, '')} |")
    kinds = ", ".join(get_args(section.model_fields["kind"].annotation)) if variant else ""
    about = f"{inspect.getdoc(section)}\n\n" if variant else ""
    table = "\n".join(rows) if len(rows) > 2 else "No further keys."
    return "\n\n".join(
        [f"{'###' if variant else '##'} {path}{f': {kinds}' if kinds else ''}\n\n{about}{table}", *inner]
    )


def _members(annotation: Any) -> list[Any]:
    """The types of a union, of one or of none."""
    if isinstance(annotation, UnionType) or "Union" in str(type(annotation)):
        return [member for part in get_args(annotation) for member in _members(part)]
    return _members(get_args(annotation)[0]) if "Annotated" in str(type(annotation)) else [annotation]


def _allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {'; '.join(map(_allowed, schema['prefixItems']))}"
    if schema.get("type") == "array":
        return f"list of {schema.get('minItems', 0)} to {schema.get('maxItems', 'any')}: {_allowed(schema['items'])}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:,}" for key, sign in bounds.items() if key in schema and schema[key] < 2**63 - 1]
    name = {"integer": "whole number", "number": "number", "string": "text", "null": "`null`"}
    name["boolean"] = "`true`, `false`"
    pattern = [f"matching `{schema['pattern']}`"] if "pattern" in schema else []
    return ", ".join([name.get(schema.get("type"), "any value"), *limits, *pattern])


def _default(field: Any) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    value = value.model_dump(mode="json") if isinstance(value, Section) else value
    return "" if value is None else f"`{json.dumps(value)}`"


def _comments(section: type[Section]) -> dict[str, str]:
    """The comment beside each key in config.py."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(section), re.MULTILINE))


def commands() -> str:
    """What `vaeline COMMAND --help` prints, of each."""
    from pipeline.cli import app

    parts, found = [], typer.main.get_command(app).commands
    for name, command in found.items():
        context = command.context_class(command, info_name=f"vaeline {name}", terminal_width=88, max_content_width=88)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)
