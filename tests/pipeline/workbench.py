"""Running commands in a repository, and reading what they leave."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vaeline.strict import read_yaml

ROOT = Path(__file__).parents[2]


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
    """Run the command line."""
    return execute(sys.executable, "-m", "pipeline.cli", *arguments, cwd=cwd, env=env, check=check)


def lines_with(text: str, *words: str) -> list[str]:
    """The lines that contain all the words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


def read_lock(repository: Path) -> dict[str, dict[str, object]]:
    """The stages of dvc.lock."""
    stages: dict[str, dict[str, object]] = read_yaml(repository / "dvc.lock")["stages"]
    return stages
