"""The stage train as a process of its own, in a folder with prepared data of bumps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from small_training import bumps
from vaeline.data.prepared import DataManifest, SplitSummary
from vaeline.io.digests import file_digest

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, str(REPOSITORY / "pipeline" / "stages" / "runner.py"), "train"]
OUTPUTS = ("models/model.safetensors", "models/config.json", "reports/history.csv")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """params.yaml and prepared data of bumps. There is no test split: training has no use for one."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["model"]["network"]["hidden"] = [16]
    params["train"] |= {"epochs": 3, "batch_size": 16}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    prepared = tmp_path / "data" / "prepared"
    prepared.mkdir(parents=True)
    summaries = {}
    for name, count in (("train", 100), ("validation", 30), ("test", 30)):
        np.save(prepared / f"{name}.npy", bumps(count, seed=count))
        digest = file_digest(prepared / f"{name}.npy")
        summaries[name] = SplitSummary(count=count, sha256=digest, mean=0.2, std=0.3, labels=False, factors=False)
    (prepared / "test.npy").unlink()
    manifest = DataManifest(
        source="bumps", shape=(1, 8, 8), binarise="none", splits=summaries, duplicates_dropped=0, classes=None
    )
    (prepared / "manifest.json").write_text(manifest.model_dump_json())
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    return os.environ | {"VAELINE_UPLOADER": "off", "VAELINE_DEVICE": "cpu", "PYTHONPATH": path} | more


def run(workspace: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, cwd=workspace, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def outputs(workspace: Path) -> list[bytes]:
    return [(workspace / name).read_bytes() for name in OUTPUTS]


def edit(workspace: Path, section: str, **changes: object) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params[section] |= changes
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def steps(workspace: Path) -> set[str]:
    return {path.name for path in (workspace / ".vaeline" / "checkpoints").glob("*/step-*")}
