"""Environment variables that Prefect, MLflow and DVC read; the user's own settings win."""

import getpass
import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from vaeline.errors import UserError, redact
from vaeline.io.git import HOOK_VARIABLES
from vaeline.io.workspace import Workspace, current_workspace, expanded

PROFILES: dict[str, dict[str, str]] = {  # that Prefect itself brings
    "ephemeral": {},
    "local": {"PREFECT_API_URL": "http://127.0.0.1:4200/api"},
    "cloud": {},
}
API = re.compile(r"https?://[^/\s]+(/\S*)?/api(/\S*)?")


def enter_workspace() -> Workspace:
    """Go to the folder of dvc.yaml, here or above: for entry points. Raises UserError where there is none."""
    root = current_workspace().repository
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"no dvc.yaml in {root}: run vaeline in a clone of the repository")
    os.chdir(root)
    return current_workspace()


def prepare_environment(workspace: Workspace | None = None) -> Workspace:
    """Set what Prefect, MLflow and DVC read when imported or started: for entry points, before they import them.

    Returns the workspace, without one the current.
    """
    prepare_tools(workspace := workspace or current_workspace())
    prepare_prefect(workspace)
    return workspace


def prepare_tools(workspace: Workspace) -> None:
    """No telemetry; the interpreter's own folder first in PATH, so that DVC's `python` is this one.

    Blank settings count as not set. Raises UserError where `.vaeline` can be no folder.
    """
    state = workspace.make_state()
    try:
        getpass.getuser()
        Path.home()
    except (OSError, KeyError, RuntimeError):  # no entry in passwd, as in a container: DVC and Prefect ask for both
        os.environ |= {"USER": f"uid{os.getuid()}", "HOME": str(state)} | os.environ
    for name, value in list(os.environ.items()):
        blank = name.startswith(("PREFECT_", "MLFLOW_")) and not value  # in an environment file; to Prefect a value
        if blank or name in HOOK_VARIABLES:
            del os.environ[name]
    os.environ |= {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | os.environ
    here = str(Path(sys.executable).parent)
    others = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != here]
    os.environ["PATH"] = os.pathsep.join([here, *others])
    os.environ["SHELL"] = "/bin/sh"  # DVC starts stages in it; a service's user may have one that starts nothing


def prepare_prefect(workspace: Workspace) -> None:
    """The active profile's settings; else history in `.vaeline/prefect.db`, log lines that begin with the stage's name.

    A password for a server to be started here is its clients' too. Raises UserError for a profile or an address that
    cannot be one.
    """
    line = "%(asctime)s | %(levelname)-7s | "
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{workspace.state / 'prefect.db'}",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # of 90 days ago: its history is bounded
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": line + "%(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": line + "%(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": line + "%(task_run_name)s | %(message)s",
    }
    os.environ |= defaults | _prefect_profile() | os.environ
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    if api := os.environ.get("PREFECT_API_URL"):
        if not _is_api(api):
            wanted = "the address of a server's API, such as http://127.0.0.1:4200/api"
            raise UserError(f"PREFECT_API_URL: found {api!r}, allowed: {wanted}")
        os.environ.setdefault("PREFECT_UI_URL", redact(api).rstrip("/").removesuffix("/api"))  # of its links


def _is_api(address: str) -> bool:
    try:
        return API.fullmatch(address) is not None and urlsplit(address).port != 0
    except ValueError:  # a port that is none
        return False


def _prefect_profile() -> dict[str, str]:
    """The settings of Prefect's active profile. Raises UserError for an unknown one, or a file that cannot be read."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect"))
    path = expanded(os.environ.get("PREFECT_PROFILES_PATH", str(home / "profiles.toml")), "PREFECT_PROFILES_PATH")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        profiles = PROFILES | content.get("profiles", {})
        name = os.environ.get("PREFECT_PROFILE") or content.get("active", "ephemeral")
        if name not in profiles:
            where = "PREFECT_PROFILE" if "PREFECT_PROFILE" in os.environ else f"{path}: active"
            raise UserError(f"{where}: found {name!r}, allowed: a profile of {path}, {', '.join(profiles)}")
        return {key: str(value) for key, value in profiles[name].items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no profiles of Prefect's: {error}; correct the file, or move it away") from None
