"""The registry on a terminal: tables that fit 80 columns, and plain text where there is no terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaeline.registry.champion_history import Entry

DASH = "–"
STYLES = {"champion": "bold green", "challenger": "yellow", "promoted": "green", "rejected": "red"}


def show(*tables: Table) -> None:
    """Print the tables, each as wide as it needs and the terminal allows."""
    console = Console(highlight=False)
    for table in tables:
        console.print(table)


def versions_table(model: Any, versions: Sequence[Any]) -> Table:
    """MLflow's versions of a registered model with their test metrics: nats per image, decibels."""
    table = _table(model.name)
    for column in ("no.", "alias", "ELBO", "NLL", "active", "PSNR", "decision", "when (UTC)"):
        table.add_column(column, justify="left" if column in ("alias", "decision", "when (UTC)") else "right")
    for version in versions:
        number, tags = str(version.version), version.tags
        aliases = sorted(alias for alias, target in model.aliases.items() if str(target) == number)
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        table.add_row(
            Text(number),
            _coloured(*aliases),
            _number(tags.get("vaeline.test_elbo"), 2),
            _number(tags.get("vaeline.test_nll"), 2),
            Text(tags.get("vaeline.active_units", DASH)),
            _number(tags.get("vaeline.test_psnr"), 1),
            _coloured(tags.get("vaeline.decision", DASH)),
            Text(f"{created:%Y-%m-%d %H:%M}"),
        )
    return table


def history_table(name: str, entries: Sequence[tuple[Entry, bool]]) -> Table:
    """What was decided, the oldest first."""
    table = _table(f"{name}: history")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("what", min_width=12)
    table.add_column("by", overflow="fold", max_width=20)
    table.add_column("why", ratio=1, overflow="fold")
    for entry, done in entries:
        moment = entry.time[:16].replace("T", " ")
        table.add_row(Text(moment), Text(_what(entry, done)), Text(entry.user), Text("; ".join(_why(entry))))
    return table


def _what(entry: Entry, done: bool) -> str:
    words = {
        "promote": f"promoted {entry.version}",
        "reject": f"rejected {entry.version}",
        "rollback": f"back to {entry.version}",
    }
    after = f" after {entry.before}" if entry.moves and entry.before else ""
    forced = ", forced" if entry.forced else ""
    return f"{words[entry.action]}{after}{forced}{'' if done else ' (not carried out)'}"


def _why(entry: Entry) -> Sequence[str]:
    """A forced promotion's reasons name the person's already."""
    return (*entry.reasons, entry.reason) if entry.reason and not entry.forced else entry.reasons


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )


def _number(value: str | None, digits: int) -> Text:
    try:
        return Text(DASH if value is None else f"{float(value):.{digits}f}")
    except ValueError:
        return Text(value or DASH)


def _coloured(*words: str) -> Text:
    return Text(", ").join(Text(word, style=STYLES.get(word, "")) for word in words)
