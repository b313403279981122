"""Environment variables of servers and interpreters, and passwords that must not be printed."""

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.server.services import ServerServicesDBVacuumSettings
from prefect.settings.models.tasks import TasksSettings
from pydantic import ValidationError

from command_line import vaeline
from pipeline.services.environment import prepare_environment
from pipeline.services.servers import mlflow_server
from vaeline.command.program import explain, set_process_defaults
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    """The environment of before comes back after each test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_what_prefect_dvc_and_git_read_is_made_right(toy: Path):
    here = str(Path(sys.executable).parent)
    os.environ |= {
        "PREFECT_API_AUTH_STRING": "",  # left blank in an environment file
        "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "",
        "PREFECT_API_URL": "http://me:s3cret@host:4200/api",
        "PATH": os.pathsep.join(["/usr/bin", here, "/bin"]),
        "SHELL": "/usr/sbin/nologin",
        "GIT_DIR": "/elsewhere/.git",  # as in a hook of another repository
        "GIT_INDEX_FILE": "/elsewhere/.git/index",
        "GIT_CONFIG_COUNT": "0",
    }
    prepare_environment()
    assert os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith(f"{toy}/.vaeline/prefect.db")
    assert os.environ["PREFECT_API_AUTH_STRING"] == "admin:secret", "a started server's password is its clients'"
    assert os.environ["PREFECT_UI_URL"] == "http://host:4200"
    assert os.environ["PATH"] == os.pathsep.join([here, "/usr/bin", "/bin"]), "DVC's python is this one"
    assert os.environ["SHELL"] == "/bin/sh"
    assert not {"GIT_DIR", "GIT_INDEX_FILE"} & set(os.environ)
    assert os.environ["GIT_CONFIG_COUNT"] == "0", "a setting, not a repository"


def test_prefect_itself_removes_flow_runs_of_long_ago_with_their_logs_and_events():
    """So that `.vaeline/prefect.db` does not grow for ever; the outbox is pruned by the uploader."""
    prepare_environment()
    assert ServerServicesDBVacuumSettings().enabled_vacuum_types >= {"flow_runs", "events"}


def test_a_value_that_prefect_refuses_is_one_line():
    with pytest.raises(ValidationError) as raised:
        TasksSettings.model_validate({"default_retries": "many"})
    (line,) = explain(raised.value) or []
    assert line.startswith("PREFECT_...: TasksSettings.default_retries: Input should be a valid integer")


def test_a_user_whom_the_machine_does_not_know_gets_a_name_and_a_home(monkeypatch: pytest.MonkeyPatch, toy: Path):
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    del os.environ["HOME"]
    prepare_environment()
    assert (os.environ["USER"], os.environ["HOME"]) == (f"uid{os.getuid()}", f"{toy}/.vaeline")


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ('active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://a:1/api"', "", "http://a:1/api"),
        ('active = "b"\n[profiles.a]\nPREFECT_API_URL = "http://a:1/api"\n[profiles.b]', "a", "http://a:1/api"),
        ("[profiles.a]", "local", "http://127.0.0.1:4200/api"),
        (None, "", None),
        ('active = "ephemeral"', "", None),
        ('active = "c"\n[profiles.a]', "", "/p.toml: active: found 'c', allowed: a profile of "),
        (None, "c", "PREFECT_PROFILE: found 'c', allowed: a profile of "),
        ("[profiles", "", "/p.toml: no profiles of Prefect's: "),
        ('profiles = "a"', "", "/p.toml: no profiles of Prefect's: "),
        ("[profiles.a]\nPREFECT_API_URL = 'http://a:1'", "a", "PREFECT_API_URL: found 'http://a:1', allowed: "),
        ("[profiles.a]\nPREFECT_API_URL = 'http://a:4O/api'", "a", "allowed: the address of a server's API"),
        ("[profiles.a]\nPREFECT_API_URL = 'a:1/api'", "a", "PREFECT_API_URL: found 'a:1/api', allowed: "),
    ],
)
def test_prefects_profile_is_used_or_refused(toy: Path, text: str | None, name: str, found: str | None):
    os.environ |= {"PREFECT_PROFILES_PATH": str(toy / "p.toml"), "PREFECT_PROFILE": name}
    if text is not None:
        (toy / "p.toml").write_text(text)
    if found is None or found.endswith("/api"):
        prepare_environment()
        assert os.environ.get("PREFECT_API_URL") == found
    else:
        with pytest.raises(UserError, match=re.escape(found)) as raised:
            prepare_environment()
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_servers_of_this_machine_are_asked_past_a_proxy(name: str):
    os.environ |= {"http_proxy": "http://127.0.0.1:9", name: "a.b"}
    set_process_defaults()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "a.b,127.0.0.1,localhost"


def test_no_folder_for_local_state_is_one_clear_line(toy: Path):
    (toy / ".vaeline").symlink_to(toy / "unmounted")
    with pytest.raises(UserError, match=f"^{toy}/.vaeline: must be a folder, found a file or a link to what is not"):
        prepare_environment()


def test_no_password_is_printed_or_in_a_command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg2", ModuleType("psycopg2"))  # without a driver the address is refused
    os.environ["MLFLOW_TRACKING_URI"] = "postgresql://me:secret@db/m"
    assert not [word for word in mlflow_server(Workspace(), 5000).command if "secret" in word]
    del os.environ["MLFLOW_TRACKING_URI"]
    api = "http://me:secret@127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: api}), pytest.raises(UserError, match=r"^Prefect") as raised:
        vaeline("deploy", PREFECT_API_URL=api)
    assert "secret" not in str(raised.value) + "".join(capfd.readouterr())
