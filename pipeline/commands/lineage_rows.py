"""Rows of a label and a text that show a lineage: for `vaeline trace`."""

from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline.report.summary import measured, with_errors
from vaeline.registry.lineage import Changes, Lineage

MOST_FILES = 20  # changed or untracked ones


def rows(lineage: Lineage) -> list[tuple[str, str]]:
    """Label and text of what is known; a text may have several lines."""
    return [(label, text) for label, text in _rows(lineage) if text]


def _rows(lineage: Lineage) -> Iterator[tuple[str, str]]:
    tag = lineage.tag
    yield "model", " ".join([lineage.uri, *(f"@{alias}" for alias in lineage.aliases)])
    yield "digest", tag("model_digest")
    yield "kind", ", ".join(filter(None, (tag("likelihood"), tag("objective"))))
    yield "decision", "\n".join(filter(None, (tag("decision"), *lineage.reasons)))
    yield "gate", ", ".join(f"{name} {measured(value)}" for name, value in lineage.gate.items())
    yield "run", _run(lineage)
    yield "commit", _commit(lineage)
    yield "changes", _changes(lineage.changes)
    yield "untracked", "\n".join([*lineage.untracked[:MOST_FILES], *_more(lineage.untracked)])
    yield "data", _data(lineage)
    yield "data digest", tag("data_digest")
    yield "experiment", tag("dvc_experiment") and f"{tag('dvc_experiment')} (DVC)"
    yield "flow run", tag("flow_run_id") and f"{tag('flow_run_id')} (Prefect)"
    yield "machine", ", ".join(f"{name} {value}" for name, value in sorted(lineage.machine.items()))
    yield "versions", ", ".join(f"{name} {value}" for name, value in lineage.versions.items())


def metrics(lineage: Lineage) -> dict[str, str]:
    """Of the test split with standard errors, where the run kept its evaluation; else what MLflow shows."""
    test = lineage.evaluation.get("test")
    if isinstance(test, dict):
        return {f"test_{name}": value for name, value in with_errors(test).items()}
    return {name: measured(value) for name, value in sorted(lineage.metrics.items())}


def _run(lineage: Lineage) -> str:
    if not lineage.run_id:
        return "none in MLflow: registered by hand, or its run was deleted"
    lines = [f"{lineage.run_id} (MLflow)", f"{lineage.run_name}, {lineage.status}"]
    if lineage.started is not None:
        start = datetime.fromtimestamp(lineage.started / 1000, UTC)
        took = f", {(lineage.ended - lineage.started) / 1000:,.0f} s" if lineage.ended else ""
        lines.append(f"{start:%Y-%m-%d %H:%M} UTC{took}")
    if lineage.tag("made_from") == "outputs":
        lines.append("made when the model was registered here: commit and versions are those of then")
    return "\n".join(lines)


def _commit(lineage: Lineage) -> str:
    commit = lineage.tag("git_commit")
    if not commit:
        return "" if not lineage.run_id else "none: not in a git repository"
    return f"{commit}\n{'with uncommitted changes' if lineage.dirty else 'nothing uncommitted'}"


def _changes(changes: Changes | None) -> str:
    if changes is None:
        return ""
    files = [f"{name} +{added} -{removed}" for name, (added, removed) in changes.files().items()]
    size = f"{len(changes.content):,} bytes in the run's git/uncommitted.diff{', cut' if changes.cut else ''}"
    return "\n".join([size, *files[:MOST_FILES], *_more(files)])


def _more(names: list[str]) -> list[str]:
    return [f"... and {len(names) - MOST_FILES} more"] if len(names) > MOST_FILES else []


def _data(lineage: Lineage) -> str:
    data = lineage.dataset
    if not data:
        return ""
    counts = data["images"]
    images = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "validation", "test") if split in counts)
    return f"{data['name']}: images of {' x '.join(map(str, data['shape']))}; {images}"
