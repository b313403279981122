"""What the environment says of servers and interpreters, and what must not be seen of it."""

import os
import sys
from pathlib import Path

import pytest
from workbench import vaeline

from pipeline.environment import prepare_environment
from pipeline.servers import mlflow_server
from vaeline.tracking.store import set_environment


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    """The environment of before comes back after each test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_what_an_environment_file_leaves_blank_counts_as_not_set(toy: Path):
    os.environ |= {"PREFECT_SERVER_API_AUTH_STRING": "", "PREFECT_SERVER_DATABASE_CONNECTION_URL": ""}
    prepare_environment()
    assert "PREFECT_SERVER_API_AUTH_STRING" not in os.environ
    assert os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith(f"{toy}/.vaeline/prefect.db")


def test_the_password_of_a_server_to_be_started_is_its_clients_too():
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = "admin:secret"
    prepare_environment()
    assert os.environ["PREFECT_API_AUTH_STRING"] == "admin:secret"


def test_dvcs_python_is_this_one_even_where_another_comes_first():
    here = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join(["/usr/bin", here, "/bin"])
    prepare_environment()
    assert os.environ["PATH"] == os.pathsep.join([here, "/usr/bin", "/bin"])


def test_a_users_limits_for_mlflow_win_and_a_parents_do_not():
    os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT", None)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "9"
    set_environment(5, 0)
    set_environment(20, 1)  # a child, with its own
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"


def test_no_password_is_printed_or_in_a_command():
    assert not [
        word for word in mlflow_server("postgresql://me:secret@db/m", "/files", 5000).command if "secret" in word
    ]
    for command in ("run", "deploy"):
        done = vaeline(command, cwd=Path.cwd(), check=False, PREFECT_API_URL="http://me:secret@127.0.0.1:9/api")
        assert done.returncode == 1
        assert "error: Prefect" in done.stderr
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stderr + done.stdout
