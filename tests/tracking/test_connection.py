"""Tracking stores that cannot work are named before a training; those that are away are not."""

import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest

from vaeline.errors import TransientError, UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import all_pages, check_store, connect


class Answers(BaseHTTPRequestHandler):
    """A web server; below /prefix, of what looks like MLflow."""

    def do_GET(self) -> None:
        """Its path says the status."""
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"{}" if "/prefix/" in self.path else b"<html>")

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def places(repository: Path) -> Iterator[dict[str, str]]:
    """Addresses by name."""
    (repository / "folder").mkdir()
    (repository / "text").write_text("no database" * 99)
    (repository / "empty").touch()
    os.mkfifo(repository / "pipe")
    with socket.socket() as silent, HTTPServer(("127.0.0.1", 0), Answers) as server:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ports = {"web": server.server_port, "silent": silent.getsockname()[1]}
        yield {name: f"http://user:s3cr3t@127.0.0.1:{port}" for name, port in ports.items()}
        server.shutdown()


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("sqlite:///new/folder/a.db", None),
        ("sqlite:///empty", None),
        ("http://127.0.0.1:9", None),  # away
        ("{silent}", None),  # hung
        ("{web}/200/prefix", None),
        ("{web}/404/prefix", None),  # MLflow's own error
        ("{web}/401", None),
        ("{web}/503", None),
        ("{web}/200", "answers, but not as an MLflow server does"),
        ("{web}/404", "answers, but not as an MLflow server does"),
        ("http://", "names no host"),
        *((f"http://{host}", "is no address of a server") for host in ("host:port", "u:s3cr3t@[::1:9", "u:s3 cr3t@h")),
        ("http:/u:s3cr3t@host", "is no known kind of store"),
        ("file:///tmp/mlruns", "is no known kind of store"),
        ("mlruns", "is no known kind of store"),
        ("sqlite://a.db", "is no known kind of store"),
        ("sqlite:///a.db?timeout=5", "holds a question mark"),
        ("postgresql+nothing://h/d", "needs a driver"),
        ("sqlite:///folder", "is no file"),
        ("sqlite:///pipe", "is no file"),
        ("sqlite:///text", "is no sqlite database"),
        ("sqlite:///text/a.db", "needs a folder "),
        ("sqlite:////proc/a.db", "cannot be used: "),
        (f"sqlite:///{'x' * 300}", "cannot be used: File name too long"),
    ],
)
def test_a_store_that_cannot_work_is_one_line(
    places: dict[str, str], uri: str, fault: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(**places))
    begin = time.monotonic()
    if fault is None:
        check_store(current_workspace())
    else:
        with pytest.raises(UserError, match=f"^MLFLOW_TRACKING_URI: found .*,? which {fault}.*; allowed: ") as raised:
            check_store(current_workspace())
        if fault.endswith(("of a server", "kind of store", "a driver", "no file", "mark")):  # whatever there is
            with pytest.raises(UserError, match=re.escape(str(raised.value))):
                connect(current_workspace())
        assert not re.search("s3 ?cr3t", str(raised.value))
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("name", ["MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_INSECURE_TLS"])
def test_a_setting_of_mlflow_s_that_it_cannot_read_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "some")
    with pytest.raises(UserError, match=f"^environment: a variable of MLflow's: .*{name}"):
        connect(current_workspace())


def test_a_damaged_store_of_the_repository_itself_is_named_with_what_to_do(repository: Path):
    (repository / ".vaeline").mkdir(exist_ok=True)
    (repository / ".vaeline" / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(
        UserError, match=r"mlflow\.db is no sqlite database .*; restore it from a backup, or move it away: "
    ):
        check_store(current_workspace())


def test_the_store_of_another_mlflow_is_no_outage_and_its_upgrade_is_named(store: Path):
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0'")
    with pytest.raises(UserError, match=r"out-of-date database schema .* 'mlflow db upgrade <data") as raised:
        connect(current_workspace())
    assert not isinstance(raised.value, TransientError)


def test_a_new_sqlite_store_is_there_whole_or_not_at_all(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's migrations are many transactions: killed half way, they leave a store that no later process can use."""
    database = repository / ".vaeline/mlflow.db"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", Mock(side_effect=KeyboardInterrupt))
        connect(current_workspace())
    (half,) = database.parent.glob(".*.new")
    assert not database.exists()
    client = connect(current_workspace())
    client.create_experiment("e")
    assert database.exists() and not half.exists()
    assert {found.name for found in connect(current_workspace()).search_experiments()} == {"Default", "e"}


def test_a_later_call_is_free_to_use_another_store(store: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow puts the address of the first into the environment."""
    connect(current_workspace())
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{os.path.relpath(store, store.parents[1])}")
    connect(current_workspace())
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///.vaeline/mlflow.db"


def test_a_search_finds_what_is_on_later_pages_too(store: Path):
    client = connect(current_workspace())
    for name in "abcde":
        client.create_registered_model(name)
    assert [model.name for model in all_pages(partial(client.search_registered_models, max_results=2))] == [*"abcde"]
