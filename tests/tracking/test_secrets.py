"""No credential reaches an output, a file or the list of processes."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from uploads import mlflow_server, until
from vaeline.errors import UserError, redact
from workspaces import OWN_CODE, tiny_clone, words_of

CANARY = "p@c4n4ry"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("'http://user:p@ss@host:5000/x' is away", "'http://host:5000/x' is away"),
        ("postgresql://user:p/w@host/db?password=x&a=b, again", "postgresql://host/db?*** again"),
        ("https://token@host", "https://host"),
        ("postgresql://user:p@ss@host/db?password=p@ss, again", "postgresql://host/db?*** again"),
        ("https://user:p?ss@host/db is away", "https://*** is away"),
        ("invalid header b'Bearer abc' or Basic abc", "invalid header b'Bearer *** or Basic ***"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("models:/digits@champion", "models:/digits@champion"),
        ("nonnumeric port: 's3@cret@host'; s3%40cret", "nonnumeric port: '***@host'; ***"),
        ("refused: t0p-s3cret", "refused: ***"),
        ("no login x hunter22, or hunter23", "no login x ***, or ***"),
        ("found postgresql://u:hunter22@db/x?a@b, at db", "found ***, at db"),
        (
            "http://h:5000/#/runs/1 and http://h/#t0ken of http://[::1]:80",
            "http://h:5000/#/runs/1 and http://h/#*** of http://[::1]:80",
        ),
        ("http://user:passw0rd has no host; http://h:80, http://h:", "http:// has no host; http://h:80, http://h:"),
        ("PWD=p4ss; Token: abc; cannot start any token", "PWD=*** Token: *** cannot start any token"),
        ("store http:/user:one slash@h or mysql//u:n0 colon@h", "store http:/user:***@h or mysql//u:***@h"),
    ],
)
def test_an_error_line_has_no_credentials(text: str, redacted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://user:s3%40cret@host/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3@cret@host")
    monkeypatch.setenv("DATABASE", "postgresql://u:hunter22@db/x?a@b")
    monkeypatch.setenv("https_proxy", "http:/user:one slash@h")
    monkeypatch.setenv("VAELINE_SWEEP_STORAGE", "mysql//u:n0 colon@h")
    monkeypatch.setenv("BUCKET", "s3://u:hunter23@b")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0p-s3cret\n")
    assert redact(text) == str(UserError(text)) == redacted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_password_reaches_no_output_no_file_and_no_command_line(tmp_path: Path):
    """A whole run against a real MLflow server, and commands whose stores are away."""
    clone, outputs, seen, done = tiny_clone(tmp_path / "clone"), [], set(), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            with suppress(psutil.Error):
                seen.update(map(words_of, psutil.Process().children(recursive=True)))

    with mlflow_server(tmp_path) as (address, _):
        until(lambda: "startup complete" in (tmp_path / "server.log").read_text())
        here = address.replace("://", f"://user:{CANARY}@")
        secrets = {
            "MLFLOW_TRACKING_URI": here,
            "MLFLOW_TRACKING_TOKEN": CANARY,
            "PREFECT_API_AUTH_STRING": f"user:{CANARY}",
            "PREFECT_SERVER_API_AUTH_STRING": f"user:{CANARY}",
        }
        database = {"MLFLOW_TRACKING_URI": f"postgresql://user:{CANARY}@127.0.0.1:9/db?password={CANARY}"}
        away = {
            "MLFLOW_TRACKING_URI": f"http://user:{CANARY}@127.0.0.1:9",
            "PREFECT_API_URL": f"http://u:{CANARY}@[::1]:9",
        }
        threading.Thread(target=watch, daemon=True).start()
        for command, changes, code in [
            ("run", {}, 0),
            ("sync", {}, 0),
            ("models", {}, 0),
            ("doctor", {}, 0),
            ("sync", {"MLFLOW_TRACKING_TOKEN": f"{CANARY}\n"}, 0),
            *[(command, changes, 1) for changes in (away, database) for command in ("doctor", "models", "up")],
            ("down", away, 0),
        ]:
            environment = {**os.environ, **OWN_CODE, **secrets, **changes}
            arguments = [sys.executable, "-m", "pipeline.cli", command]
            ended = subprocess.run(arguments, cwd=clone, env=environment, capture_output=True, text=True, check=False)
            outputs.append(f"{command} {changes}: {ended.stdout}{ended.stderr}".replace(str(changes), ""))
            assert ended.returncode == code, outputs[-1]
        done.set()
    assert "promoted" in outputs[0]
    assert any("train" in command for command in seen)
    assert not [line for text in [*outputs, *seen] for line in text.splitlines() if "c4n4ry" in line]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {clone / ".vaeline" / "outbox" / "outbox.db", tmp_path / "server.db"} <= set(files)
    assert not [path for path in files if b"c4n4ry" in path.read_bytes()]
