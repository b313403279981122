"""A tiny repository with three stages, for what drives DVC."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vaeline.strict import read_yaml

ROOT = Path(__file__).parents[2]
TOY = """
stages:
  fetch: {desc: first, cmd: 'cp seed.txt raw.txt', deps: [seed.txt], outs: [raw.txt]}
  train: {cmd: 'sh train.sh', deps: [raw.txt, train.sh], outs: [model.txt]}
  sample: {cmd: 'cp model.txt sample.txt', deps: [model.txt], params: [sample], outs: [{sample.txt: {cache: true}}]}
"""


def execute(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in a repository, its own interpreter first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path, **(env or {})}, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def vaeline(*arguments: str, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with one Prefect history for all tests: a new one takes seconds to make."""
    history = f"sqlite+aiosqlite:///{os.environ['PREFECT_HOME']}/history.db"
    env = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": history, **env}
    return execute(sys.executable, "-m", "pipeline.cli", *arguments, cwd=cwd, env=env, check=check)


def lines_with(text: str, *words: str) -> list[str]:
    """The lines that contain all the words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


def read_lock(repository: Path) -> dict[str, dict[str, object]]:
    """The stages of dvc.lock."""
    stages: dict[str, dict[str, object]] = read_yaml(repository / "dvc.lock")["stages"]
    return stages


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository, as working folder."""
    execute("git", "init", "-q", cwd=tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text((ROOT / ".dvc" / "config").read_text())
    (tmp_path / ".dvc" / ".gitignore").write_text((ROOT / ".dvc" / ".gitignore").read_text())
    (tmp_path / "dvc.yaml").write_text(TOY)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("fashion-mnist  ", "digits  "))
    (tmp_path / "seed.txt").write_text("seed")
    (tmp_path / "train.sh").write_text("echo training; cp raw.txt model.txt\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path
