"""Servers on this machine: ports, passwords, and which server it is that answers."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.services.servers import Server, answers, free_port, mlflow_server, started, wait_until_ready
from vaeline.errors import UserError


def test_a_taken_port_is_not_used():
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


def test_beyond_loopback_mlflow_asks_for_passwords():
    assert "basic-auth" in mlflow_server("sqlite:///x.db", "artifacts", 5000, "0.0.0.0").arguments
    assert "basic-auth" not in mlflow_server("sqlite:///x.db", "artifacts", 5000).arguments
