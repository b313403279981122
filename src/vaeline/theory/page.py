"""A claim and the page that shows it: Markdown with pictures beside it, and one HTML file that holds all."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vaeline.plotting.charts import Picture

MARKDOWN_SIGNS = re.compile(r"([\\`*_])")
STYLE = """\
body { font: 16px/1.5 sans-serif; color: #202020; max-width: 960px; margin: 2em auto; padding: 0 1em }
h2 { margin-top: 2.2em; border-bottom: 1px solid #d0d0d0 } pre { background: #f4f4f4; padding: .7em 1em }
table { border-collapse: collapse } th, td { padding: .25em .8em; border-bottom: 1px solid #d0d0d0; text-align: left }
img { max-width: 100% } figure { margin: 1em 0 } figcaption { color: #606060 }"""


@dataclass(frozen=True)
class Table:
    """Rows of plain text below a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Claim:
    """One section of the page; all words are plain text."""

    key: str
    title: str
    equation: str
    words: tuple[str, ...] = ()  # paragraphs
    numbers: dict[str, Any] = field(default_factory=dict)  # what goes into reports/theory.json
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()


def markdown(title: str, introduction: str, claims: Sequence[Claim]) -> str:
    """The page as GitHub shows it; the pictures are files beside it."""
    parts = [f"# {_plain(title)}", _plain(introduction)]
    parts.append("\n".join(f"{i}. {_plain(claim.title)}" for i, claim in enumerate(claims, 1)))
    for i, claim in enumerate(claims, 1):
        parts += [f"## {i}. {_plain(claim.title)}", f"```text\n{claim.equation}\n```"]
        parts += [_plain(words) for words in claim.words]
        if claim.table:
            parts.append(_markdown_table(claim.table))
        parts += [f"![{_plain(p.caption)}]({p.name}.png)\n\n*{_plain(p.caption)}*" for p in claim.pictures]
    return "\n\n".join(parts) + "\n"


def document(title: str, introduction: str, claims: Sequence[Claim]) -> str:
    """The page as one HTML file that needs nothing else: so MLflow shows it."""
    safe = html.escape
    parts = [f"<h1>{safe(title)}</h1>", f"<p>{safe(introduction)}</p>"]
    parts.append("<ol>" + "".join(f'<li><a href="#{c.key}">{safe(c.title)}</a></li>' for c in claims) + "</ol>")
    for i, claim in enumerate(claims, 1):
        parts += [f'<h2 id="{claim.key}">{i}. {safe(claim.title)}</h2>', f"<pre>{safe(claim.equation)}</pre>"]
        parts += [f"<p>{safe(words)}</p>" for words in claim.words]
        if claim.table:
            parts.append(_html_table(claim.table))
        parts += [_html_picture(picture) for picture in claim.pictures]
    head = f'<meta charset="utf-8"><title>{safe(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _plain(text: str) -> str:
    return html.escape(MARKDOWN_SIGNS.sub(r"\\\1", text), quote=False)


def _markdown_table(table: Table) -> str:
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    cells = [[cell if i == 1 else _plain(cell).replace("|", r"\|") for cell in row] for i, row in enumerate(rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _html_table(table: Table) -> str:
    rows = [(table.header, "th"), *((row, "td") for row in table.rows)]
    lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row, tag in rows]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _html_picture(picture: Picture) -> str:
    source, caption = base64.b64encode(picture.png).decode(), html.escape(picture.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
