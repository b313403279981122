"""The command line: words, exit codes, and web interfaces that answer and go away."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.services.servers import Server, answers, free_port, mlflow_server, started, wait_until_ready
from vaeline.errors import UserError
from workspaces import execute, vaeline


def test_without_a_command_it_says_what_there_is(tmp_path: Path):
    done = vaeline("--help", cwd=tmp_path)
    for command in ("run", "up", "down", "deploy", "worker", "ui", "sync", "doctor"):
        assert re.search(rf"^\s+{command}\s", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [("rub",), ("run", "--fast"), ("sync", "extra")])
def test_wrong_usage_exits_with_two(tmp_path: Path, arguments: tuple[str, ...]):
    assert vaeline(*arguments, cwd=tmp_path, check=False).returncode == 2


def test_outside_a_repository_it_says_where_to_run(tmp_path: Path):
    done = vaeline("run", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: no dvc.yaml in {tmp_path}: run vaeline in a clone of the repository\n"


def test_a_mistake_in_params_is_told_before_anything_starts(toy: Path):
    text = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(text.replace("batch_size:", "batchsize:"))
    (toy / "below").mkdir()
    done = vaeline("run", cwd=toy / "below", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "train.batchsize: unknown key; did you mean 'batch_size'?" in done.stderr
    assert not (toy / ".vaeline").exists()


def test_sync_with_nothing_to_send_says_so(toy: Path):
    assert vaeline("sync", cwd=toy).stdout == "0 events of 0 runs sent\n"


def test_a_taken_port_is_left_to_who_has_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_another_server_at_the_port_is_not_taken_for_the_one_just_started(toy: Path):
    """Two that start at once may have found the same port free."""
    port = free_port(0)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        while not answers(port, "/"):
            assert other.poll() is None
        late = Server("late", "late", "http.server", [str(port), "--bind", "127.0.0.1"], port, "/")
        with (
            started(late) as process,
            pytest.raises(UserError, match=r"exit code 1: .*Address already in use"),
        ):
            wait_until_ready(late, process)
        other.kill()


@pytest.mark.slow
def test_both_interfaces_answer_on_this_machine_only_and_stop_together(toy: Path):
    execute("git", "init", "-q", cwd=toy)
    command = [sys.executable, "-m", "pipeline.cli", "ui"]
    with subprocess.Popen(command, cwd=toy, stdout=subprocess.PIPE, text=True) as ui:
        try:
            assert ui.stdout is not None
            lines = [ui.stdout.readline() for _ in range(3)]
            addresses = re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines))
            assert len(addresses) == 2
            for address in addresses:
                with urllib.request.urlopen(address, timeout=60) as answer:
                    assert b"<html" in answer.read().lower()
            ui.send_signal(signal.SIGINT)
            assert ui.wait(60) == 0
        finally:
            ui.terminate()
    for address in addresses:
        port = int(address.rpartition(":")[2])
        assert free_port(port) == port, "nothing listens there any more"


def test_servers_open_to_other_machines_need_passwords(toy: Path):
    (toy / "below").mkdir()
    done = vaeline("up", "--host", "0.0.0.0", cwd=toy / "below", check=False, MLFLOW_AUTH_ADMIN_PASSWORD="x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: --host 0.0.0.0: other machines could use the servers without a password; "
        "set MLFLOW_FLASK_SERVER_SECRET_KEY and PREFECT_SERVER_API_AUTH_STRING\n"
    )


def test_beyond_loopback_mlflow_asks_for_passwords():
    assert "basic-auth" in mlflow_server("sqlite:///x.db", "artifacts", 5000, "0.0.0.0").arguments
    assert "basic-auth" not in mlflow_server("sqlite:///x.db", "artifacts", 5000).arguments


def test_down_without_anything_running_says_so(toy: Path):
    assert vaeline("down", cwd=toy).stdout == "nothing was running\n"


def test_a_worker_without_a_server_says_what_to_set(toy: Path):
    done = vaeline("worker", cwd=toy, check=False)
    assert (done.returncode, done.stderr.startswith("error: PREFECT_API_URL: not set")) == (1, True)


def test_servers_of_the_environment_are_told_and_not_started(toy: Path):
    env = {"MLFLOW_TRACKING_URI": "http://user:secret@mlflow.example", "PREFECT_API_URL": "http://prefect.example/api"}
    done = vaeline("ui", cwd=toy, **env)
    assert done.stdout.splitlines() == [
        "MLflow: http://mlflow.example (MLFLOW_TRACKING_URI)",
        "Prefect: http://prefect.example (PREFECT_API_URL)",
    ]
