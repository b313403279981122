"""Two makings of a model held against each other: what differs, by how much, and what about the machines may be why."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vaeline.io.digests import file_digest, model_digest
from vaeline.io.workspace import MODEL, PREPARED, REPORTS, Workspace
from vaeline.registry.lineage import Lineage
from vaeline.tracking.outbox import Outbox


def differences(lineage: Lineage, stored: Path, history: bytes | None, project: Path) -> list[str]:
    """What of the model made again in `project` is not as the registered one: empty where they are identical.

    `stored` is the folder of the registered model.safetensors and config.json, `history` its run's history.csv.
    """
    found = [*_data(lineage, project), *_model(stored, project / MODEL)]
    if history is not None:
        found += _history(history, (project / REPORTS / "history.csv").read_bytes())
    return found + (list(_machine(lineage.machine, machine_of(project))) if found else [])


def _data(lineage: Lineage, project: Path) -> Iterator[str]:
    manifest = project / PREPARED / "manifest.json"
    digest, then = file_digest(manifest), lineage.tag("data_digest")
    if digest == then:
        return
    yield f"{PREPARED}: digest {digest}, was {then or 'not recorded'}"
    splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
    for split, count in lineage.dataset.get("images", {}).items():
        if (here := splits.get(split, {}).get("count")) != count:
            yield f"{PREPARED}: {split} has {here} images, had {count}"


def _model(stored: Path, made: Path) -> Iterator[str]:
    then, here = model_digest(stored), model_digest(made)
    if then == here:
        return
    yield f"{MODEL}: digest {here}, was {then}"
    old, new = (_flat(json.loads((folder / "config.json").read_text(encoding="utf-8"))) for folder in (stored, made))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{MODEL}/config.json: {key}: {new.get(key)!r}, was {old.get(key)!r}"
    yield from _tensors(stored, made)


def _tensors(stored: Path, made: Path) -> Iterator[str]:
    import numpy as np
    from safetensors.numpy import load_file

    path = f"{MODEL}/model.safetensors"
    old, new = (load_file(folder / "model.safetensors") for folder in (stored, made))
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (old, new)]
    if shapes[0] != shapes[1]:
        yield f"{path}: other tensors: {shapes[1]}, were {shapes[0]}"
        return
    gaps = {name: float(np.abs(new[name].astype(np.float64) - old[name]).max(initial=0.0)) for name in old}
    wrong = {name: gap for name, gap in gaps.items() if gap != 0}
    if wrong:
        worst = max(wrong, key=lambda name: wrong[name])
        yield f"{path}: {len(wrong)} of {len(gaps)} tensors differ, by at most {wrong[worst]:.3g} ({worst})"


def _history(then: bytes, here: bytes) -> Iterator[str]:
    """The largest difference of each column."""
    if then == here:
        return
    path = REPORTS / "history.csv"
    old, new = (list(csv.DictReader(io.StringIO(content.decode()))) for content in (then, here))
    if len(old) != len(new):
        yield f"{path}: {len(new)} epochs, were {len(old)}"
    for column in new[0] if new else ():
        gaps = [abs(_number(b.get(column)) - _number(a.get(column))) for a, b in zip(old, new, strict=False)]
        if any(gap != 0 for gap in gaps if not math.isnan(gap)):
            yield f"{path}: {column} differs by at most {max(gaps):.3g}"


def _machine(then: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    if not then:
        yield "the machine that trained it is not recorded"
        return
    other = [name for name in sorted(then.keys() | here.keys()) if then.get(name) != here.get(name)]
    for name in other:
        yield f"the machine: {name} is {here.get(name, 'not recorded')}, was {then.get(name, 'not recorded')}"
    if not other:
        yield f"the machines are alike: {', '.join(f'{name} {value}' for name, value in sorted(here.items()))}"


def machine_of(project: Path) -> dict[str, str]:
    """The identity that the stage train reported in `project`."""
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


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
