"""The wheel as a light install has it: `vaeline` outside any repository, without MLflow, Pillow and ONNX."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from model_sections import SHAPE, saved, section
from packages import make_package

pytestmark = pytest.mark.filterwarnings("ignore:.*type hint")  # MLflow, at its import
ROOT = Path(__file__).parents[1]
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
# each command line in turn, in one process; writes exit codes and outputs as JSON
DRIVER = """
import contextlib, io, json, os, sys
os._exit = sys.exit
sys.modules.update(dict.fromkeys(("mlflow", "PIL", "onnx", "onnxruntime", "onnxscript", "pipeline")))
from vaeline.command.main import app
from vaeline.command.program import run_program
found = []
for sys.argv[1:] in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        try:
            run_program(app)
        except SystemExit as end:
            found.append((end.code, text.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of this checkout puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True, text=True)
    with ZipFile(folder / "dist" / done.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site-packages")
    return folder / "site-packages"


def run(installed: Path, cwd: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_holds_vaeline_and_no_package_called_pipeline(installed: Path):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"vaeline"}
    assert (installed / "vaeline" / "py.typed").is_file()
    entry_points = next(installed.glob("vaeline-*/entry_points.txt")).read_text()
    assert "vaeline = vaeline.command.main:main" in entry_points


@pytest.mark.parametrize("command", ["run", "sweep", "doctor"])
def test_a_command_of_the_repository_is_one_line_and_exit_code_two(installed: Path, tmp_path: Path, command: str):
    done = run(installed, tmp_path, "-m", "vaeline.command.main", command, "--option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {command}: unknown command; allowed here: verify, export, score; ")
    assert done.stderr.count("\n") == 1


def test_models_are_verified_and_scored_and_a_missing_library_is_one_line(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 21: a missing library that is a traceback."""
    saved(tmp_path / "model", section())
    make_package(tmp_path / "package", tmp_path / "model")
    np.savez(tmp_path / "images.npz", images=np.full((3, *SHAPE[1:]), 200, np.uint8))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    commands = [
        ["--version"],
        ["verify", "package"],
        ["score", "images.npz", "--model", "model"],
        ["score", "pictures", "--model", "model"],
        ["export", "model", "onnx"],
        ["verify", "models:/digits@champion"],
    ]
    (tmp_path / "store.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    done = run(installed, tmp_path, "-c", DRIVER, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    codes, (version, verified, scored, *missing) = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    assert codes == (0, 0, 1, 1, 1, 1)
    assert version == "vaeline 0.1.0\n"
    assert "loads and is finite" in verified
    assert "has no ELBOs of test images with it" in scored, "which a model of the registry has"
    assert (tmp_path / "scores.csv").read_text().count("\n") == 4
    assert missing[0] == "error: PIL: is not installed; pip install 'vaeline[pipeline]'\n"
    assert "pip install 'vaeline[onnx]'" in missing[1]
    assert "models:/digits@champion: needs mlflow: pip install mlflow; a folder can be loaded without" in missing[2]
    assert [text.count("\n") for text in missing] == [1, 1, 1]
