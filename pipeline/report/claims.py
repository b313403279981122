"""The theory's claims, read back from `reports/theory/theory.html`; only text and PNG pictures come through."""

import base64
import binascii
import re
from html.parser import HTMLParser
from pathlib import Path

from vaeline.io.workspace import REPORTS
from vaeline.plotting.charts import Picture
from vaeline.theory.page import Claim, Table

PAGE = REPORTS / "theory" / "theory.html"
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/]+=*)")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_claims(path: Path = PAGE) -> tuple[Claim, ...]:
    """The page's claims; none where there is no page."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return tuple(draft.claim() for draft in reader.drafts)


class _Draft:
    """A claim while it is read."""

    def __init__(self, key: str) -> None:
        self.key, self.title, self.equation = key, "", ""
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.pictures: list[Picture] = []

    def claim(self) -> Claim:
        rows = [tuple(row) for row in self.rows]
        table = Table(rows[0], tuple(rows[1:])) if rows else None
        title = re.sub(r"^\d+\. ", "", self.title)
        return Claim(self.key, title, self.equation, tuple(self.words), {}, table, tuple(self.pictures))


class _Reader(HTMLParser):
    """Takes the text of h2, pre, p and cells and the pictures that are PNG files; leaves everything else."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.drafts: list[_Draft] = []
        self._open = ""  # the element whose text is being read
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "h2":
            self.drafts.append(_Draft(given.get("id") or ""))
        if not self.drafts:
            return
        if tag == "tr":
            self.drafts[-1].rows.append([])
        if tag == "img" and (png := _png(given.get("src") or "")):
            self.drafts[-1].pictures.append(Picture("", given.get("alt") or "", png))
        if tag in ("h2", "pre", "p", "td", "th"):
            self._open, self._text = tag, ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag != self._open:
            return
        draft, text = self.drafts[-1], self._text
        match tag:
            case "h2":
                draft.title = text
            case "pre":
                draft.equation = f"{draft.equation}\n{text}".strip("\n")
            case "p":
                draft.words.append(text)
            case "td" | "th" if draft.rows:
                draft.rows[-1].append(text)
        self._open = ""


def _png(source: str) -> bytes | None:
    match = PNG.fullmatch(source)
    if match is None:
        return None
    try:
        content = base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None
    return content if content.startswith(SIGNATURE) else None
