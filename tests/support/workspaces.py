"""Running commands in a repository, and reading what they leave."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pipeline.services.servers import free_port, prefect_server, started, wait_until_ready
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import read_yaml

ROOT = Path(__file__).parents[2]
TINY = {
    r"kind: fashion-mnist": "kind: digits",
    r"validation: 10000": "validation: 200",
    r"name: vaeline-fashion-mnist": "name: digits",
    r"importance_samples: \d+": "importance_samples: 4",
    r"latent_images: \d+": "latent_images: 50",
    r"training_images: \d+": "training_images: 100",
    r"hidden: \[.*\]": "hidden: [32]",
    r"  epochs: \d+": "  epochs: 3",
    r"rows: \d+": "rows: 2",
    r"minimum_active_units: \d+": "minimum_active_units: 0",
}
FIRST_STAGE = {
    r"latent_dim: \d+": "latent_dim: 16",
    r"kind: mlp (.|\n)*?activation: silu": "{kind: autoencoder-kl, block_out_channels: [4, 8], latent_channels: 1,"
    " norm_num_groups: 2}",
}
RUNS = ["first_run", pytest.param("first_stage_run", marks=pytest.mark.slow)]  # for a parametrised `clone`
HURRY = {  # few repeats: nothing that the stages theory and evaluate measure is precise any more
    "theory.bounds": {"TEMPERATURES": 4},
    "theory.gradients": {"REPEATS": 5, "PAIRS": 2, "BATCH_PAIRS": 2},
    "theory.scales": {"STEPS": 10},
    "evaluation.probes": {"CLASSIFIER_STEPS": 20},
}
TOY = """
stages:
  fetch: {desc: first, cmd: 'cp seed.txt raw.txt', deps: [seed.txt], outs: [raw.txt]}
  train: {cmd: 'exec sh train.sh', deps: [raw.txt, train.sh], outs: [model.txt]}
  sample: {cmd: 'cp model.txt sample.txt', deps: [model.txt], params: [sample], outs: [{sample.txt: {cache: true}}]}
"""


def execute(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in a repository."""
    both = os.environ | dict(env or {})
    done = subprocess.run(command, cwd=cwd, env=both, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def vaeline(*arguments: str, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return execute(sys.executable, "-m", "pipeline.cli", *arguments, cwd=cwd, env=env, check=check)


def commit(folder: Path) -> None:
    """Commit everything, in a new repository where there is none yet."""
    for command in ("init -q -b main", "add -A", "commit -q --allow-empty -m Start"):
        execute("git", *command.split(), cwd=folder)


def begin(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """The command line at work, what it prints on a pipe, its errors too."""
    command, pipe = [sys.executable, "-m", "pipeline.cli", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=os.environ | env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def lines_with(text: str, *parts: str) -> list[str]:
    """The lines that contain all the parts."""
    return [line for line in text.splitlines() if all(part in line for part in parts)]


def words_of(process: psutil.Process) -> str:
    """What a process was started with; empty where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run, zombies not counted."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def read_lock(repository: Path) -> dict[str, dict[str, object]]:
    """The stages of dvc.lock."""
    stages: dict[str, dict[str, object]] = read_yaml(repository / "dvc.lock")["stages"]
    return stages


def tiny_clone(folder: Path, changes: Mapping[str, str] = {}) -> Path:
    """This checkout as a repository of its own, with params and constants for seconds."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".vaeline", "__pycache__", "tmp", "cache", "data", "models", "reports"
    )
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    for module, constants in HURRY.items():
        with (folder / "src/vaeline" / f"{module.replace('.', '/')}.py").open("a") as code:
            code.writelines(f"{name} = {value}\n" for name, value in constants.items())
    text = (folder / "params.yaml").read_text()
    for pattern, value in (TINY | changes).items():
        text, count = re.subn(pattern, value, text)
        assert count, f"params.yaml has no {pattern}"
    (folder / "params.yaml").write_text(text)
    commit(folder)
    return folder


def make_toy(folder: Path) -> Path:
    """The tiny repository, its files not yet committed."""
    execute("git", "init", "-q", cwd=folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text((ROOT / ".dvc" / "config").read_text())
    (folder / ".dvc" / ".gitignore").write_text((ROOT / ".dvc" / ".gitignore").read_text())
    (folder / "dvc.yaml").write_text(TOY)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("fashion-mnist  ", "digits  "))
    (folder / "seed.txt").write_text("seed")
    (folder / "train.sh").write_text("echo training; cp raw.txt model.txt\n")
    return folder


def answer(api: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    """Status and content of a GET, or a POST of `body`; a server too busy (503) is asked again, as Prefect does."""
    method = "GET" if body is None else "POST"
    for delay in (1, 2, 4, 8, 16, 0):
        found = httpx.request(method, f"{api}{path}", json=body, headers=headers, timeout=60)
        if found.status_code != 503:
            break
        time.sleep(delay)
    return found.status_code, found.content


def ask(api: str, path: str, body: object = None) -> Any:
    """Prefect's API: the content of a GET, or of a POST of `body`."""
    status, content = answer(api, path, body)
    assert status < 400, (path, status, content)
    return json.loads(content or "null")


def runs(repository: Path) -> list[dict[str, Any]]:
    """The MLflow runs of a repository's own store: id, experiment, params, metrics, tags and reports of each."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{repository}/.vaeline/mlflow.db")
    names = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
    return [
        {
            "id": run.info.run_id,
            "experiment": names[run.info.experiment_id],
            "params": run.data.params,
            "metrics": run.data.metrics,
            "tags": run.data.tags,
            "files": [file.path.rpartition("/")[2] for file in client.list_artifacts(run.info.run_id, "reports")],
            "status": run.info.status,
            "curve": len(client.get_metric_history(run.info.run_id, "validation/elbo")),
        }
        for run in client.search_runs(list(names))
    ]


OWN_CODE = {"PYTHONPATH": "src", "VAELINE_DEVICE": "cpu"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository, as working folder."""
    monkeypatch.chdir(make_toy(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Prefect server for all tests that are not about running without one: it saves each its seconds."""
    folder = tmp_path_factory.mktemp("prefect-server")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{folder}/prefect.db")
        server = prefect_server(Workspace(folder, folder), free_port(0))
        with started(server) as process:
            wait_until_ready(server, process)
            yield f"{server.address}/api"


@pytest.fixture
def own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages import the copy they run in, on the processor."""
    for name, value in OWN_CODE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A clone, and its first `vaeline run`; all tests of whole pipelines share it."""
    clone = tiny_clone(tmp_path_factory.mktemp("clone"))
    return clone, vaeline("run", cwd=clone, **OWN_CODE)


@pytest.fixture(scope="session")
def first_stage_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same with an AutoencoderKL."""
    clone = tiny_clone(tmp_path_factory.mktemp("first-stage"), FIRST_STAGE)
    return clone, vaeline("run", cwd=clone, **OWN_CODE)


@pytest.fixture
def clone(request: pytest.FixtureRequest) -> Path:
    """The clone after its first run."""
    run: tuple[Path, subprocess.CompletedProcess[str]] = request.getfixturevalue(getattr(request, "param", "first_run"))
    return run[0]


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], str]:
    """A page's document after its scripts have run; evil.example is a name of this machine."""
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.fail("chromium is not installed: apt-get install chromium", pytrace=False)

    def browse(address: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        options += [f"--user-data-dir={tmp_path}/chromium", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        command = [chromium, *options, "--virtual-time-budget=20000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    return browse
