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

from vaeline.data.prepared import SPLITS, load_split, read_manifest

RUNNER = str(Path(__file__).parents[2] / "pipeline" / "stages" / "runner.py")
PARAMS = Path(__file__).parents[2] / "params.yaml"


def write_params(folder: Path, **data: Any) -> None:
    params = yaml.safe_load(PARAMS.read_text())
    params["data"] |= data
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def stage(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, RUNNER, name, **environment)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=everything, check=False)


def test_digits_go_from_scikit_learn_to_prepared_arrays(tmp_path: Path) -> None:
    write_params(tmp_path, source={"kind": "digits"}, validation=0.15)
    for name in ("fetch", "prepare"):
        done = stage(name, tmp_path)
        assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "data/prepared")
    assert sum(split.count for split in manifest.splits.values()) + manifest.duplicates_dropped == 1797
    assert [len(load_split(tmp_path / "data/prepared", name)) for name in SPLITS[1:]] == [270, 270]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["prepared", "raw"]


def test_a_mistake_is_told_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_params(tmp_path, source={"kind": "digits"}, validation=10_000)
    assert stage("fetch", tmp_path).returncode == 0
    done = stage("prepare", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.validation: found 10000: validation 10000 and test 10000 leave none of 1797 images to train on; "
        "allowed: at most 898"
    ]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """On a real file system of one megabyte, mounted in a private namespace."""
    if shutil.which("unshare") is None or run(tmp_path, "unshare", "-rm", "true").returncode:
        pytest.skip("no private mounts on this machine")
    write_params(tmp_path, source={"kind": "shapes", "count": 2000, "size": 32}, validation=100)
    (tmp_path / "data").mkdir()
    fill = f"{sys.executable} {RUNNER} fetch; echo rc=$?; ls -A data"
    done = run(tmp_path, "unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m none data && {{ {fill}; }}")
    assert done.stdout.split() == ["rc=1"], done  # and nothing in data/
    assert len(done.stderr.splitlines()) == 1
    assert "the disk is full" in done.stderr and "data/raw" in done.stderr


def test_a_write_that_fails_in_the_middle_leaves_the_old_arrays(tmp_path: Path) -> None:
    write_params(tmp_path, source={"kind": "shapes", "count": 2000, "size": 32}, validation=100)
    for name in ("fetch", "prepare"):
        assert stage(name, tmp_path).returncode == 0
    before = (tmp_path / "data/prepared/manifest.json").read_bytes()
    write_params(tmp_path, source={"kind": "shapes", "count": 2000, "size": 32}, validation=200)
    limited = f"ulimit -f 2000; exec {sys.executable} {RUNNER} prepare"  # blocks of 512 bytes: 1 MB a file
    done = run(tmp_path, "sh", "-c", limited)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert (tmp_path / "data/prepared/manifest.json").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["prepared", "raw"]


def test_all_of_fashion_mnist_becomes_fifty_ten_and_ten_thousand(tmp_path: Path, fashion_mnist: Path) -> None:
    write_params(tmp_path, source={"kind": "fashion-mnist"}, validation=10_000)
    done = stage("fetch", tmp_path, VAELINE_DATA_DIR=str(fashion_mnist))
    assert done.returncode == 0, done.stderr
    assert f"fashion-mnist: taken from {fashion_mnist}" in done.stderr
    assert stage("prepare", tmp_path).returncode == 0
    manifest = read_manifest(tmp_path / "data/prepared")
    assert [manifest.splits[name].count for name in SPLITS] == [50_000, 10_000, 10_000]
    assert manifest.duplicates_dropped == 0 and manifest.shape == (1, 28, 28)
    whole = np.concatenate([load_split(tmp_path / "data/prepared", name) for name in ("train", "validation")])
    assert whole.mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # as everybody's normalisation of the 60,000 says
    assert whole.std() / 255 == pytest.approx(0.3530, abs=5e-5)
