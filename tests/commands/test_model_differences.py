"""Differences between a model and the same made again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pipeline.commands.model_differences import model_differences
from vaeline.io.digests import file_digest
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Lineage
from vaeline.tracking.outbox import Outbox


def of(**tags: str) -> Lineage:
    return Lineage("m", "1", (), {f"vaeline.{key}": value for key, value in tags.items()}, run_id="r")


def made(
    folder: Path, weights: dict[str, float], config: dict[str, object], history: str = "epoch,elbo\n1,-2\n"
) -> Path:
    """Outputs of a reproduction, as far as they are compared."""
    for name in ("data/prepared", "models", "reports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    splits = {"train": {"count": 3}}
    (folder / "data" / "prepared" / "manifest.json").write_text(json.dumps({"splits": splits}))
    tensors = {name: np.full(2, value, np.float32) for name, value in weights.items()}
    save_file(tensors, folder / "models" / "model.safetensors")
    (folder / "models" / "config.json").write_text(json.dumps(config))
    (folder / "reports" / "history.csv").write_text(history)
    run = Outbox(Workspace(folder, folder)).create("k")
    run.append("tags", values={"vaeline.machine.torch": "2", "vaeline.machine.threads": "1"})
    return folder


def test_identical_is_identical(tmp_path: Path):
    one, other = (made(tmp_path / name, {"a": 1.0}, {"x": 1}) for name in "ab")
    lineage = of(data_digest=file_digest(one / "data" / "prepared" / "manifest.json"))
    history = (one / "reports" / "history.csv").read_bytes()
    assert model_differences(lineage, one / "models", history, other) == []


def test_each_difference_has_its_size_and_what_may_be_the_cause(tmp_path: Path):
    one = made(tmp_path / "a", {"a": 1.0, "b": 2.0}, {"model": {"dim": 3}})
    other = made(tmp_path / "b", {"a": 1.0, "b": 2.5}, {"model": {"dim": 4}}, "epoch,elbo\n1,-2.25\n2,-1\n")
    lineage = replace(of(data_digest="d" * 64), dataset={"images": {"train": 5}})
    lineage = replace(lineage, tags={**lineage.tags, "vaeline.machine.torch": "1", "vaeline.machine.threads": "1"})
    found = model_differences(lineage, one / "models", (one / "reports" / "history.csv").read_bytes(), other)
    assert found[0].startswith("data/prepared: digest ")
    assert found[1] == "data/prepared: train has 3 images, had 5"
    assert found[2].startswith("models: digest ")
    assert found[3:] == [
        "models/config.json: model.dim: 4, was 3",
        "models/model.safetensors: 1 of 2 tensors differ, by at most 0.5 (b)",
        "reports/history.csv: 2 epochs, were 1",
        "reports/history.csv: elbo differs by at most 0.25",
        "the machine: torch is 2, was 1",
    ]
    unknown = model_differences(of(), one / "models", None, other)
    assert unknown[-1] == "the machine that trained it is not recorded"
    alike = of(**{"machine.torch": "2", "machine.threads": "1"})
    assert model_differences(alike, one / "models", None, other)[-1] == "the machines are alike: threads 1, torch 2"
