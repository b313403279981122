"""The command line in a workspace: what there is, exit codes, and errors before anything starts."""

import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vaeline as library
from command_line import vaeline
from pipeline.cli import app
from pipeline.services.servers import free_port
from vaeline.errors import UserError
from workspaces import begin, execute


def test_help_lists_the_commands_and_the_version_is_the_packages():
    text = vaeline("--help")
    for command in ("run", "up", "down", "deploy", "worker", "ui", "sync", "doctor", "sweep", "promote", "verify"):
        assert re.search(rf"^\s+{command}\s", text, re.MULTILINE)
    assert vaeline("--version") == f"vaeline {library.__version__}\n"
    assert f'version = "{library.__version__}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.mark.parametrize(("typed", "found"), [("vaeline ro", "rollback\n"), ("vaeline run --dr", "--dry-run\n")])
def test_a_shell_completes_commands_and_options(typed: str, found: str):
    env = {"_VAELINE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert CliRunner().invoke(app, [], env=env, prog_name="vaeline").output == found


@pytest.mark.parametrize("arguments", [("rub",), ("run", "--fast"), ("sync", "extra")])
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]):
    vaeline(*arguments, code=2)


def test_outside_a_repository_and_in_a_deleted_folder_the_error_is_one_line(tmp_path: Path):
    done = execute(sys.executable, "-m", "pipeline.cli", "run", cwd=tmp_path, check=False)
    assert done.stderr == f"error: no dvc.yaml in {tmp_path}: run vaeline in a clone of the repository\n"
    code = "import os; from vaeline.command.main import main; os.rmdir('../gone'); main()"
    (tmp_path / "gone").mkdir()
    gone = execute(sys.executable, "-c", code, "run", cwd=tmp_path / "gone", check=False)
    assert gone.stderr == "error: the current folder was deleted: cd to one that is there\n"
    assert done.returncode == gone.returncode == 1


def test_a_mistake_in_params_is_reported_before_anything_starts(toy: Path, monkeypatch: pytest.MonkeyPatch):
    text = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(text.replace("batch_size:", "batchsize:"))
    (toy / "below").mkdir()
    monkeypatch.chdir(toy / "below")
    with pytest.raises(UserError, match=r"train.batchsize: unknown key; did you mean 'batch_size'\?"):
        vaeline("run")
    assert not (toy / ".vaeline").exists()


def test_sync_and_down_with_nothing_to_do(toy: Path):
    assert vaeline("sync") == "0 events of 0 runs sent\n"
    assert vaeline("down") == "nothing was running\n"


@pytest.mark.parametrize("command", ["worker", "deploy"])
def test_without_a_prefect_server_the_error_names_what_to_set(toy: Path, command: str):
    with pytest.raises(UserError, match="PREFECT_API_URL: not set"):
        vaeline(command)


def test_servers_of_the_environment_are_named_and_not_started(toy: Path):
    env = {"MLFLOW_TRACKING_URI": "http://user:secret@mlflow.example", "PREFECT_API_URL": "http://prefect.example/api"}
    assert vaeline("ui", **env).splitlines() == [
        "MLflow: http://mlflow.example/#/experiments?workflowType=machine_learning (MLFLOW_TRACKING_URI)",
        "Prefect: http://prefect.example (PREFECT_API_URL)",
    ]


@pytest.mark.slow
def test_both_interfaces_answer_on_this_machine_only_and_stop_together(toy: Path):
    with begin("ui", "--port", str(wanted := free_port(0)), cwd=toy) as ui:
        try:
            assert ui.stdout is not None
            lines = [ui.stdout.readline() for _ in range(2)]
            addresses = re.findall(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
            assert (len(addresses), addresses[0]) == (2, str(wanted))
            for port in addresses:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
                    assert b"<html" in answer.read().lower()
            ui.send_signal(signal.SIGINT)
            assert ui.wait(60) == 0
        finally:
            ui.terminate()
    assert [free_port(int(port)) for port in addresses] == list(map(int, addresses)), "nothing listens there any more"
