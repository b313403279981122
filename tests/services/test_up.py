"""`vaeline up` with a real Prefect server, a real worker and real trainings: what an operator relies on."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import workspaces
from uploads import until
from workspaces import alive, execute, lines_with, read_lock, runs, tiny_clone, vaeline, words_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
LONG = {r"  epochs: \d+": "  epochs: 300", r"patience: \d+": "patience: 5000"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone with the stages up to a long training, and `vaeline up` in it."""
    folder = tiny_clone(tmp_path_factory.mktemp("clone"))
    params = (folder / "params.yaml").read_text()
    for pattern, value in LONG.items():
        params, count = re.subn(pattern, value, params)
        assert count
    (folder / "params.yaml").write_text(params)
    stages = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(stages[: stages.index("  evaluate:")])
    execute("git", "commit", "-qam", "Train only", cwd=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder / 'src'}{os.pathsep}{folder}")
        patch.setenv("VAELINE_DEVICE", "cpu")
        patch.setenv("VAELINE_CHECKPOINT_SECONDS", "1")
        try:
            vaeline("up", cwd=folder)
            yield folder
        finally:
            vaeline("down", cwd=folder)


def record(clone: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((clone / ".vaeline" / f"{name}.json").read_text())
    return content


def ask(clone: Path, path: str, body: object = None) -> Any:
    """The server of `vaeline up`."""
    return workspaces.ask(f"{record(clone, 'prefect-server')['address']}/api", path, body)


def submit(clone: Path, deployment: str = "on-demand", **parameters: object) -> str:
    known = ask(clone, f"/deployments/name/vaeline/{deployment}")
    body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
    return str(ask(clone, f"/deployments/{known['id']}/create_flow_run", body)["id"])


def final(clone: Path, flow_run: str) -> dict[str, Any]:
    """The flow run when it has come to its end."""

    def ended() -> dict[str, Any] | None:
        run: dict[str, Any] = ask(clone, f"/flow_runs/{flow_run}")
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

    found: dict[str, Any] = until(ended, 1200)
    return found


def log_of(clone: Path, flow_run: str) -> str:
    logs = ask(clone, "/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
    return "\n".join(log["message"] for log in logs)


def training(clone: Path, flow_run: str) -> list[psutil.Process]:
    """The processes of a flow run, once its training has written a checkpoint."""

    def tree() -> list[psutil.Process] | None:
        path = clone / ".vaeline" / "flow-runs" / f"{flow_run}.json"
        if not path.exists() or not list((clone / ".vaeline" / "checkpoints").glob("*/step-*")):
            return None
        engine = psutil.Process(json.loads(path.read_text())["pid"])
        found = [engine, *engine.children(recursive=True)]
        return found if any("runner.py train" in words_of(p) for p in found) else None

    found: list[psutil.Process] = until(tree)
    return found


def test_a_cancelled_run_is_gone_in_seconds_with_a_checkpoint_and_frees_every_lock(clone: Path):
    flow_run = submit(clone)
    tree = training(clone, flow_run)
    ask(clone, f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    until(lambda: not alive(tree[1:]), 60)
    until(lambda: not alive(tree), 60)
    assert final(clone, flow_run)["state_type"] == "CANCELLED"
    assert list((clone / ".vaeline" / "checkpoints").glob("*/step-*"))
    assert set(json.loads(execute("dvc", "status", "--json", cwd=clone).stdout)) == {"train"}
    until(lambda: vaeline("sync", cwd=clone) and [r for r in runs(clone) if r["status"] == "KILLED"])


def test_a_run_whose_worker_is_killed_goes_on_after_up_to_the_same_bytes(clone: Path):
    flow_run = submit(clone)
    tree = training(clone, flow_run)
    before = record(clone, "worker")["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: not alive(tree), 60)
    again = vaeline("up", cwd=clone)
    assert len(lines_with(again.stdout, "already running")) == 2, "both servers"
    assert record(clone, "worker")["pid"] != before
    run = final(clone, flow_run)
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    assert "resuming at step" in log_of(clone, flow_run)
    through = read_lock(clone)
    execute("dvc", "repro", "--force", "--single-item", "train", cwd=clone)
    assert read_lock(clone) == through, "an uninterrupted training writes the same"


def test_of_two_runs_at_once_one_waits_or_is_skipped(clone: Path):
    seed(clone, 2, epochs=3000)  # a worker takes seconds to begin
    first = submit(clone)
    training(clone, first)
    second, third = submit(clone), submit(clone, "nightly")
    (schedule,) = ask(clone, "/deployments/name/vaeline/nightly")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 * * *", "Etc/UTC")
    assert final(clone, third)["state_name"] == "Skipped"
    assert "another run (process" in final(clone, third)["state"]["message"]
    assert final(clone, first)["state_name"] == "Completed"
    assert final(clone, second)["state_name"] == "Unchanged"
    assert "is at work here: waiting for its end" in log_of(clone, second)


def test_a_stage_of_a_shell_is_refused_beside_a_run_and_a_run_waits_for_one(clone: Path):
    seed(clone, 3, epochs=3000)
    flow_run = submit(clone)
    tree = training(clone, flow_run)
    stage = ("python", "pipeline/stages/runner.py", "fetch")  # as DVC starts it where its own locks allow it
    refused = execute(*stage, cwd=clone, check=False)
    assert lines_with(refused.stderr + refused.stdout, "error: a run of the pipeline (process", "is at work here")
    assert alive(tree)
    ask(clone, f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    until(lambda: not alive(tree), 60)
    command, both = ["dvc", "repro"], subprocess.STDOUT
    with subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=both, text=True) as shell:
        assert shell.stdout is not None
        assert next(line for line in shell.stdout if line.startswith("epoch "))
        waiting = submit(clone)
        until(lambda: "a stage of a `dvc repro` is at work here: waiting" in log_of(clone, waiting))
        shell.communicate(timeout=300)
        assert shell.returncode == 0
    assert final(clone, waiting)["state_name"] == "Unchanged"


def test_other_params_run_as_an_experiment_that_leaves_the_workspace(clone: Path):
    before = (clone / "params.yaml").read_text(), read_lock(clone)
    run = final(clone, submit(clone, overrides=["train.epochs=2", "model.latent_dim=3"]))
    assert run["state_name"] == "Completed"
    name = re.search(r"dvc exp apply (\S+)", run["state"]["message"])
    assert name
    assert name[1] in execute("dvc", "exp", "list", cwd=clone).stdout
    assert ((clone / "params.yaml").read_text(), read_lock(clone)) == before
    wrong = final(clone, submit(clone, overrides=["train.epochs=none"]))
    assert wrong["state_type"] == "FAILED"
    assert wrong["state"]["message"].startswith("-S: train.epochs: ")


def test_down_leaves_nothing_and_never_stops_a_other(clone: Path):
    everything = [psutil.Process(record(clone, name)["pid"]) for name in ("worker", "prefect-server", "mlflow-server")]
    everything += [child for process in everything for child in process.children(recursive=True)]
    other = subprocess.Popen(["sleep", "300"])
    try:
        os.kill(record(clone, "mlflow-server")["pid"], signal.SIGKILL)
        assert "stopped: worker, prefect-server" in vaeline("down", cwd=clone).stdout
        until(lambda: not alive(everything), 20)
        path = clone / ".vaeline" / "worker.json"
        path.write_text(json.dumps({"pid": other.pid, "started": "long ago"}))
        assert vaeline("down", cwd=clone).stdout == "nothing was running\n"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def seed(clone: Path, number: int, epochs: int = 300) -> None:
    """Another training to do."""
    text = (clone / "params.yaml").read_text()
    head, train, tail = text.partition("\ntrain:")
    tail = re.sub(r"  epochs: \d+", f"  epochs: {epochs}", tail, count=1)
    (clone / "params.yaml").write_text(head + train + re.sub(r"seed: \d+", f"seed: {number}", tail, count=1))
    shutil.rmtree(clone / ".vaeline" / "checkpoints", ignore_errors=True)
