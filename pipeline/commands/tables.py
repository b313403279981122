"""The registry on a terminal: tables that fit 80 columns, and plain text where there is no terminal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vaeline.registry.champion_history import Entry


def show(*tables: Table) -> None:
    """Print the tables, each as wide as it needs and the terminal allows."""
    console = Console(highlight=False, markup=False, emoji=False)
    for table in tables:
        console.print(table)


def versions_table(model: Any, versions: Sequence[Any]) -> Table:
    """MLflow's versions of a registered model with their test metrics: nats per image, decibels."""
    table = _table(model.name)
    for column in ("no.", "alias", "ELBO", "NLL", "active", "PSNR", "decision", "when (UTC)"):
        table.add_column(column, justify="left" if column in ("alias", "decision", "when (UTC)") else "right")
    for version in versions:
        number, tags = str(version.version), version.tags
        table.add_row(
            number,
            ", ".join(sorted(alias for alias, target in model.aliases.items() if str(target) == number)),
            _number(tags, "test_elbo", 2),
            _number(tags, "test_nll", 2),
            _number(tags, "active_units", 0),
            _number(tags, "test_psnr", 1),
            tags.get("vaeline.decision", "–"),
            f"{datetime.fromtimestamp(version.creation_timestamp / 1000, UTC):%Y-%m-%d %H:%M}",
        )
    return table


def history_table(name: str, entries: Sequence[tuple[Entry, bool]]) -> Table:
    """What was decided, the oldest first."""
    table = _table(f"{name}: history")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("what", min_width=12)
    table.add_column("by", overflow="fold", max_width=20)
    table.add_column("why", ratio=1, overflow="fold")
    words = {"promote": "promoted", "reject": "rejected", "rollback": "back to"}
    for entry, done in entries:
        after = f" after {entry.before}" if entry.moves and entry.before else ""
        what = f"{words[entry.action]} {entry.version}{after}{', forced' if entry.forced else ''}"
        own = [entry.reason] if entry.reason and not entry.forced else []  # which forced ones name already
        why = "; ".join([*entry.reasons, *own])
        table.add_row(entry.time[:16].replace("T", " "), what if done else f"{what} (not carried out)", entry.user, why)
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )


def _number(tags: Mapping[str, str], name: str, digits: int) -> str:
    value = tags.get(f"vaeline.{name}", "–")
    try:
        return f"{float(value):.{digits}f}"
    except ValueError:
        return value
