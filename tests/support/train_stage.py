"""The stage train as a process of its own, in a folder with prepared data of bumps."""

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from pipeline.stages import runner
from preloaded_process import PROCESSES
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


class Done(NamedTuple):
    """How a stage ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def _main(workspace: Path, variables: dict[str, str]) -> None:
    os.chdir(workspace)
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(workspace / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    runner.main("train")


def start(workspace: Path, **more: str) -> BaseProcess:
    """The stage, at work."""
    process = PROCESSES.Process(target=_main, args=(workspace, environment(**more)))
    process.start()
    return process


def run(workspace: Path, **more: str) -> Done:
    """The stage, ended."""
    process = start(workspace, **more)
    process.join(300)
    assert process.exitcode is not None
    return Done(process.exitcode, *((workspace / name).read_text() for name in ("stdout", "stderr")))


def outputs(workspace: Path) -> list[bytes]:
    return [(workspace / name).read_bytes() for name in OUTPUTS]


def edit(workspace: Path, section: str, **changes: object) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params[section] |= changes
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def steps(workspace: Path) -> set[str]:
    return {path.name for path in (workspace / ".vaeline" / "checkpoints").glob("*/step-*")}
