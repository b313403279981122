"""The Prefect flow on a tiny repository: real DVC, Prefect's own temporary server."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import command_line
from pipeline.report.summary import markdown
from pipeline.services.child_processes import ProcessRecord
from uploads import until
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT, ask, execute, lines_with, vaeline

FLOWS = """
import subprocess, sys
from pipeline.services.environment import prepare_environment
prepare_environment()
from pipeline.flows.vaeline import vaeline_flow
for change in sys.argv[1:]:
    subprocess.run(change, shell=True, check=True)
    state = vaeline_flow(return_state=True)
    print("ended", state.message if state.is_failed() else state.result(), file=sys.stderr, flush=True)
print("heavy", sorted({"torch", "mlflow", "torchvision"} & set(sys.modules)))
"""
RETRIES = {"PREFECT_TASKS_DEFAULT_RETRIES": "1", "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "0"}
# each a change of the repository, and how the flow after it ends
HISTORY = {
    "true": "{'fetch': 'ran', 'train': 'ran', 'sample': 'ran'}",
    "echo '# the same model' >> train.sh": "{'fetch': 'cached', 'train': 'ran', 'sample': 'cached'}",
    "echo other > seed.txt": "{'fetch': 'ran', 'train': 'ran', 'sample': 'ran'}",  # dvc status names fetch alone
    "rm sample.txt": "{'fetch': 'cached', 'train': 'cached', 'sample': 'restored'}",
    "echo 'echo x >> tries; echo error: wrong >&2; exit 1' > train.sh": "stage 'train' failed: wrong (not run: sample)",
    "echo 'echo x >> tries; test $(wc -l < tries) -ge 3 || exit 75; cp tries model.txt' > train.sh": (
        "{'fetch': 'cached', 'train': 'ran', 'sample': 'ran'}"  # 75: transient, retried
    ),
}


def test_only_what_changed_runs_again_without_torch_and_only_a_transient_failure_is_retried(
    toy: Path, prefect_api: str
):
    """Mistake 22: what DVC is asked about."""
    env = {"PREFECT_API_URL": prefect_api} | RETRIES
    done = execute(sys.executable, "-c", FLOWS, *HISTORY, cwd=toy, env=env)
    assert done.stdout == "heavy []\n"
    assert [line[6:] for line in lines_with(done.stderr, "ended ") if line.startswith("ended ")] == [*HISTORY.values()]
    first, _, _, fourth, *_ = done.stderr.split("\nended ")
    assert len(lines_with(first, "| train | training")) == 1, "seen once on the console"
    assert lines_with(fourth, "fetch cached, train cached, sample restored")
    assert not lines_with(fourth, "| train | Stage"), "DVC was asked once, not stage by stage"
    assert (toy / "tries").read_text() == "x\nx\nx\n"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = vaeline("run", cwd=toy, PREFECT_API_URL="http://127.0.0.1:9/api")
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (last.stdout.splitlines()[0], last.stderr) == ("all stages up to date", ""), "no server is asked or started"
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 5, "CPU-seconds; 0.9 on an idle machine"


def test_what_ends_a_run_is_one_clear_line(toy: Path, prefect_api: str):
    def error_line(api: str, **env: str) -> str:
        done = vaeline("run", cwd=toy, check=False, PREFECT_API_URL=api, **env)
        assert done.returncode == 1
        assert not lines_with(done.stderr, "Traceback")
        (line,) = lines_with(done.stderr, "error: ")[-1:]
        return line

    (toy / "train.sh").write_text("echo error: a.png: truncated >&2; exit 1\n")
    proxy = "http://127.0.0.1:9"  # of a company's network: this machine's own servers are asked without it
    failed = error_line(prefect_api, http_proxy=proxy)
    assert failed == "error: stage 'train' failed: a.png: truncated (not run: sample)"
    assert not (toy / "sample.txt").exists()
    assert lines_with(error_line("http://127.0.0.1:9/api"), "Prefect: Failed to reach API", "unset PREFECT_API_URL")
    store = "MLFLOW_TRACKING_URI: found file:///tmp/mlruns, which is no known kind of store; "
    with pytest.raises(UserError, match=f"^{store}"):
        command_line.vaeline("run", MLFLOW_TRACKING_URI="file:///tmp/mlruns")
    (toy / "dvc.lock").write_text("schema: '2.0'\nstages:\n  fetch:\n    cmd: [")
    with pytest.raises(UserError, match=r"dvc status: .*dvc.lock is torn: `git checkout dvc.lock`, or delete it"):
        command_line.vaeline("run")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),  # Ctrl-C at a terminal
    ],
)
def test_a_run_that_is_stopped_or_killed_leaves_neither_stage_nor_server(toy: Path, number: int, code: int):
    bound = f"exec {sys.executable} -m pipeline.services.child_processes $PPID 15 sleep 300"
    (toy / "train.sh").write_text(f"echo child $$; {bound}\n")
    here, there = os.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "pipeline.cli", "run"]  # a window of its own
    with subprocess.Popen(command, cwd=toy, stdin=there, stdout=there, stderr=there) as run, os.fdopen(here) as screen:
        os.close(there)
        line = next(line for line in screen if "| train | child " in line)
        family = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(int(line.split()[-1]))]
        known = {ProcessRecord.of(process.pid): process.cmdline() for process in family}
        assert any("uvicorn" in command for command in known.values())
        if number == signal.SIGINT:
            os.write(here, b"\x03")
            with suppress(OSError):  # as a terminal ends
                assert screen.readline() == "^Cinterrupted\n"
                assert not screen.readline()
        else:
            run.send_signal(number)
        assert run.wait(240) == code
    until(lambda: not [command for process, command in known.items() if process.lives], 120)


def test_the_report_shows_metrics_and_pictures_inline(toy: Path):
    from PIL import Image

    (toy / "reports" / "samples").mkdir(parents=True)
    Image.new("L", (2000, 1000), 128).save(toy / "reports" / "samples" / "prior_samples.png")
    (toy / "reports" / "metrics.json").write_text(
        '{"protocol": "p", "test": {"elbo": -12.3456789, "elbo_se": 0.123, "active_units": 7}}'
    )
    text = markdown(Workspace(), {"train": "ran"})
    assert "| train | ran |" in text
    assert "| ELBO | -12.35 ± 0.12 | nats per image |" in text
    assert "| active units | 7 |" in text
    assert "## Prior samples" in text
    assert "](data:image/png;base64,iVBORw0KGgo" in text
    assert len(text) < 20_000


def test_the_server_plans_the_nightly_runs(prefect_api: str):
    """The pinned packages work together: a server that cannot insert scheduled runs only logs it."""
    (nightly, *_) = read_yaml(ROOT / "pipeline" / "flows" / "prefect.yaml")["deployments"]
    (schedule,) = nightly["schedules"]
    flow = ask(prefect_api, "/flows/", {"name": "planned"})["id"]
    body = {"name": "nightly", "flow_id": flow, "schedules": [{"schedule": schedule, "active": True}]}
    deployment = ask(prefect_api, "/deployments/", body)["id"]
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    runs = until(lambda: ask(prefect_api, "/flow_runs/filter", wanted), 120)
    assert all(run["auto_scheduled"] for run in runs)
    assert {run["expected_start_time"][11:16] for run in runs} == {"03:00"}
