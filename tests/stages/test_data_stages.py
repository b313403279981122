"""The stages fetch and prepare as DVC runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.stages import fetch, prepare
from vaeline.data.prepared import SPLITS, load_split, read_manifest

ROOT = Path(__file__).parents[2]
RUNNER = str(ROOT / "pipeline" / "stages" / "runner.py")
PREPARED = Path("data/prepared")
SHAPES = {"kind": "shapes", "count": 2000, "size": 32}


def write_params(folder: Path, **data: Any) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= data
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_digits_go_from_scikit_learn_to_prepared_arrays_and_a_mistake_leaves_nothing(folder: Path) -> None:
    write_params(folder, source={"kind": "digits"}, validation=10_000)
    fetch.main()
    done = run(folder, sys.executable, RUNNER, "prepare")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.validation: found 10000: validation 10000 and test 10000 leave none of 1797 images to train on; "
        "allowed: less than 1797 together"
    ]
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["init", "raw"]
    write_params(folder, source={"kind": "digits"}, validation=0.15)
    prepare.main()
    manifest = read_manifest(PREPARED)
    assert sum(split.count for split in manifest.splits.values()) + manifest.duplicates_dropped == 1797
    assert [len(load_split(PREPARED, name)) for name in SPLITS[1:]] == [270, 270]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(folder: Path) -> None:
    """On a real file system of one megabyte, mounted in a private namespace."""
    if shutil.which("unshare") is None or run(folder, "unshare", "-rm", "true").returncode:
        pytest.skip("no private mounts on this machine")
    write_params(folder, source=SHAPES, validation=100)
    (folder / "data").mkdir()
    fill = f"{sys.executable} {RUNNER} fetch; echo rc=$?; ls -A data"
    done = run(folder, "unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m none data && {{ {fill}; }}")
    assert done.stdout.split() == ["rc=1"], done  # and nothing in data/
    assert len(done.stderr.splitlines()) == 1
    assert "the disk is full" in done.stderr and "data/raw" in done.stderr


def test_all_of_fashion_mnist_becomes_fifty_ten_and_ten_thousand(
    folder: Path, fashion_mnist: Path, monkeypatch, caplog
) -> None:
    write_params(folder, source={"kind": "fashion-mnist"}, validation=10_000)
    monkeypatch.setenv("VAELINE_DATA_DIR", os.fspath(fashion_mnist))
    with caplog.at_level("INFO"):
        fetch.main()
    assert f"fashion-mnist: taken from {fashion_mnist}" in caplog.text
    prepare.main()
    manifest = read_manifest(PREPARED)
    assert [manifest.splits[name].count for name in SPLITS] == [50_000, 10_000, 10_000]
    assert manifest.duplicates_dropped == 0 and manifest.shape == (1, 28, 28)
    images = np.concatenate([load_split(PREPARED, name) for name in ("train", "validation")])
    assert images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # published normalisation of the 60,000
    assert images.std() / 255 == pytest.approx(0.3530, abs=5e-5)
