"""The table of mistakes fits the code and the tests as they are now."""

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import exemplar_data, gpu, mistakes
from benchmarks.__main__ import PARTS
from vaeline.data.prepared import open_split, read_manifest

ROOT = Path(__file__).parents[1]
NAMES, MISTAKES = mistakes.read_table()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.number}: {mistake.what}")
def test_a_mistake_is_made_at_exactly_one_place(mistake: mistakes.Mistake):
    text = (ROOT / mistake.file).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1
    assert mistake.old != mistake.new
    if mistake.file.endswith(".py"):
        ast.parse(text.replace(mistake.old, mistake.new))


def test_every_mistake_has_a_test():
    tests = mistakes.named_tests()
    assert not [f"{number}. {name}" for number, name in NAMES.items() if not tests[number]]


@pytest.mark.slow
def test_what_a_gpu_is_measured_by_runs_in_small_on_the_cpu(tmp_path: Path):
    gpu.main([f"{tmp_path}/gpu.md", "--device", "cpu"])
    text = (tmp_path / "gpu.md").read_text()
    assert "largest difference 0.0e+00" in text
    assert "bit-identical" in text
    assert "Error" not in text
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| MLP")]
    assert len(row) == len(gpu.COLUMNS.split(" | "))


def test_the_exemplar_vaes_splits_are_those_of_its_seed(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 1, 3, 3), dtype=np.uint8)
    exemplar_data.write(tmp_path, exemplar_data.their_splits(pixels, pixels[:2], held_out=4), "fashion-mnist")
    theirs = np.random.RandomState(777)
    validation, test = (theirs.binomial(1, rows.reshape(-1, 9) / 255) for rows in (pixels[5:], pixels[:2]))
    assert (open_split(tmp_path, "train").pixels == pixels[:5]).all()
    assert (open_split(tmp_path, "validation").pixels.reshape(-1, 9) == 255 * validation).all()
    assert (open_split(tmp_path, "test").pixels.reshape(-1, 9) == 255 * test).all()
    assert read_manifest(tmp_path).binarise == "dynamic"


@pytest.mark.parametrize("part", [*PARTS, "exemplar", "nll", "scale"])
def test_a_benchmark_can_be_imported(part: str):
    importlib.import_module(f"benchmarks.{part}")
