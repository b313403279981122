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
    environment = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise UserError("git: is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"git: {error}") from None
    if done.returncode:
        raise UserError(f"git: {_error_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _error_line(stderr: str) -> str:
    """The line that starts with `fatal:` or `error:` (advice may follow it), else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["failed"]
    for prefix in ("fatal: ", "error: "):
        if found := [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]:
            return found[0]
    return lines[-1]
