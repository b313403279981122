"""The registry for machines and on a terminal: tables that fit it, and plain text where there is none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.report.summary import measured
from vaeline.command.main import printable
from vaeline.registry.champion_history import Entry
from vaeline.registry.versions import utc

MEASURED = {"test_elbo": 2, "test_nll": 2, "active_units": 0, "test_psnr": 1}  # tags of a version -> digits shown


def version_rows(model: Any, versions: Sequence[Any]) -> list[dict[str, Any]]:
    """MLflow's versions of a registered model: nats per image, decibels; None for what is not known."""
    return [
        {
            "version": int(version.version),
            "aliases": sorted(alias for alias, held in model.aliases.items() if int(held) == int(version.version)),
            **{name: _number(version.tags, name) for name in MEASURED},
            "decision": version.tags.get("vaeline.decision"),
            "model_digest": version.tags.get("vaeline.model_digest"),
            "created": utc(version.creation_timestamp),
        }
        for version in versions
    ]


def history_rows(entries: Sequence[tuple[Entry, bool]]) -> list[dict[str, Any]]:
    """What was decided, the oldest first."""
    rows = []
    for entry, done in entries:
        row = asdict(entry) | {"version": int(entry.version), "carried_out": done}
        row["before"] = int(entry.before) if entry.before else None
        rows.append({key: value for key, value in row.items() if key not in ("key", "confirmed")})
    return rows


def show_versions(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `version_rows` as a table."""
    table = _table(name)
    for column in ("no.", "alias", "ELBO", "NLL", "active", "PSNR", "decision", "when (UTC)"):
        table.add_column(column, justify="left" if column in ("alias", "decision", "when (UTC)") else "right")
    for row in rows:
        numbers = ["–" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in MEASURED.items()]
        aliases, decision = printable(", ".join(row["aliases"])), printable(row["decision"] or "–")
        table.add_row(str(row["version"]), aliases, *numbers, decision, _minute(row["created"]))
    _print(table)


def show_history(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `history_rows` as a table."""
    table = _table(f"{name}: history")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("what", min_width=12)
    table.add_column("by", overflow="fold", max_width=20)
    table.add_column("why", ratio=1, overflow="fold")
    words = {"promote": "promoted", "reject": "rejected", "rollback": "back to"}
    for row in rows:
        after = f" after {row['before']}" if row["action"] != "reject" and row["before"] else ""
        what = f"{words[row['action']]} {row['version']}{after}{', forced' if row['forced'] else ''}"
        what = what if row["carried_out"] else f"{what} (not carried out)"
        own = [row["reason"]] if row["reason"] and not row["forced"] else []  # which forced ones name already
        why = "; ".join([*row["reasons"], *own])
        table.add_row(*map(printable, (_minute(row["time"]), what, row["user"], why)))
    _print(table)


def show_comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print models side by side: the params that differ, test ELBO and its paired difference to the first, in nats."""
    table = _table("")
    for name in ("", *(row["name"] for row in rows)):
        table.add_column(printable(name), overflow="fold")
    for key in rows[0]["params"]:
        table.add_row(*map(printable, (key, *(row["params"][key] for row in rows))))
    for key, title in (("elbo", "test ELBO, nats"), ("difference", "minus the first's, paired")):
        table.add_row(title, *(measured(row[key], row[f"{key}_se"]) if key in row else "" for row in rows))
    if any("note" in row for row in rows):
        table.add_row("note", *(row.get("note", "") for row in rows))
    _print(table)


def _table(title: str) -> Table:
    layout: Any = {"title_justify": "left", "show_edge": False, "pad_edge": False, "collapse_padding": True}
    return Table(title=printable(title), box=box.SIMPLE_HEAD, **layout)


def _print(table: Table) -> None:
    Console(highlight=False, markup=False, emoji=False).print(table)


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _number(tags: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(tags[f"vaeline.{name}"])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None
