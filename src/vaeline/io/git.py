"""Git commands on a folder."""

import os
import subprocess
from pathlib import Path

from vaeline.errors import UserError

# Git sets these for its hooks, where they win over -C
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
DUBIOUS_OWNERSHIP = "dubious ownership"  # in Git's message about a repository of another user
TRUST_COMMAND = "git config --global --add safe.directory"  # to be followed by the repository's folder


def git(folder: Path, *arguments: str) -> str:
    """Output of `git -C FOLDER ARGUMENTS` as text without surrounding white space. Raises UserError as `git_bytes`."""
    return git_bytes(folder, *arguments).decode(errors="replace").strip()


def try_git(folder: Path, *arguments: str) -> str | None:
    """Output as `git` returns it, or None where the command fails."""
    try:
        return git(folder, *arguments)
    except UserError:
        return None


def git_bytes(folder: Path, *arguments: str, stdin: bytes | None = None, timeout: float | None = None) -> bytes:
    """Output of `git -C FOLDER ARGUMENTS` as it is.

    Raises UserError with Git's own line where it fails, where there is no git, and after `timeout` seconds.
    """
    command = ["git", "-C", str(folder), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False, env=env)
    except FileNotFoundError:
        raise UserError("git: is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"git: {error}") from None
    if done.returncode:
        silence = f"{arguments[0]} failed; if no other git is at work, delete .git/index.lock"
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [silence]
        found = [line for prefix in ("fatal: ", "error: ") for line in lines if line.startswith(prefix)]
        line = found[0] if found else lines[-1]  # advice may follow the error
        raise UserError(f"git: {line.removeprefix('fatal: ').removeprefix('error: ').strip()}")
    return done.stdout
