"""Differences between a registered model and the same made again, with what about the machines may be the cause."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vaeline.io.digests import file_digest, model_digest
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Lineage
from vaeline.tracking.outbox import Outbox

HISTORY = "reports/history.csv"


def model_differences(lineage: Lineage, stored: Path, history: bytes | None, project: Path) -> list[str]:
    """Lines on what differs in the model made again in `project`: none where it is identical.

    `stored` is the folder of the registered model.safetensors and config.json, `history` its run's history.csv.
    """
    found = [*_data(lineage, project), *_model(stored, Workspace(project).model)]
    if history is not None:
        found += _history(history, (project / HISTORY).read_bytes())
    return found + (list(_machine(lineage.machine, machine_of(project))) if found else [])


def _data(lineage: Lineage, project: Path) -> Iterator[str]:
    manifest = Workspace(project).prepared / "manifest.json"
    digest, recorded = file_digest(manifest), lineage.tag("data_digest")
    if digest == recorded:
        return
    yield f"data/prepared: digest {digest}, was {recorded or 'not recorded'}"
    splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
    for split, count in lineage.dataset.get("images", {}).items():
        if (here := splits.get(split, {}).get("count")) != count:
            yield f"data/prepared: {split} has {here} images, had {count}"


def _model(stored: Path, made: Path) -> Iterator[str]:
    digests = model_digest(stored), model_digest(made)
    if digests[0] == digests[1]:
        return
    yield f"models: digest {digests[1]}, was {digests[0]}"
    old, new = (_flat(json.loads((folder / "config.json").read_text(encoding="utf-8"))) for folder in (stored, made))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"models/config.json: {key}: {new.get(key)!r}, was {old.get(key)!r}"
    yield from _tensors(stored, made)


def _tensors(stored: Path, made: Path) -> Iterator[str]:
    import numpy as np
    from safetensors.numpy import load_file

    path = "models/model.safetensors"
    old, new = (load_file(folder / "model.safetensors") for folder in (stored, made))
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (old, new)]
    if shapes[0] != shapes[1]:
        yield f"{path}: other tensors: {shapes[1]}, were {shapes[0]}"
        return
    gaps = {name: float(np.abs(new[name].astype(np.float64) - old[name]).max(initial=0.0)) for name in old}
    if differing := sum(gap != 0 for gap in gaps.values()):
        worst = max(gaps, key=lambda name: gaps[name])
        yield f"{path}: {differing} of {len(gaps)} tensors differ, by at most {gaps[worst]:.3g} ({worst})"


def _history(recorded: bytes, made: bytes) -> Iterator[str]:
    """The largest difference of each column; the columns are those of the run's commit."""
    if recorded == made:
        return
    old, new = (list(csv.DictReader(io.StringIO(content.decode()))) for content in (recorded, made))
    if len(old) != len(new):
        yield f"{HISTORY}: {len(new)} epochs, were {len(old)}"
    for column in new[0] if new else ():
        pairs = [(a.get(column), b[column]) for a, b in zip(old, new, strict=False)]
        if gap := max((abs(float(b) - float(a)) for a, b in pairs if a and b), default=0.0):
            yield f"{HISTORY}: {column} differs by at most {gap:.3g}"


def _machine(recorded: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    if not recorded:
        yield "the machine that trained it is not recorded"
        return
    names = sorted(recorded.keys() | here.keys())
    for name in (differing := [name for name in names if recorded.get(name) != here.get(name)]):
        yield f"the machine: {name} is {here.get(name, 'not recorded')}, was {recorded.get(name, 'not recorded')}"
    if not differing:
        yield f"the machines are alike: {', '.join(f'{name} {here[name]}' for name in names)}"


def machine_of(project: Path) -> dict[str, str]:
    """The machine's identity, as the stage train reported it in `project`."""
    prefix = "vaeline.machine."
    found: dict[str, str] = {}
    for run in Outbox(Workspace(project, project)).runs():
        for _, event in run.read():
            if event["kind"] == "tags":
                tags = event["values"].items()
                found |= {key.removeprefix(prefix): value for key, value in tags if key.startswith(prefix)}
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat
