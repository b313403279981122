"""kill -9 at random moments of real runs, on everything or on DVC or the flow alone: run again, all is the same."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from crash_workspaces import ROOT, STAGES, CrashWorkspace, tiny_params
from pipeline.services.servers import free_port, prefect_server, started, wait_until_ready
from vaeline.io import workspace

pytestmark = [pytest.mark.torture, pytest.mark.timeout(14400)]
KILLS = int(os.environ.get("TORTURE_KILLS", "50"))
SEED = int(os.environ.get("TORTURE_SEED", str(time.time_ns() % 1_000_000)))
SECONDS = 60.0  # for orphans to end, on a busy machine
FLOW, REPRO = [sys.executable, "-m", "pipeline.cli", "run"], [sys.executable, "-m", "dvc", "repro"]


@dataclass
class Repository:
    """A repository whose runs are killed."""

    workspace: CrashWorkspace
    env: dict[str, str]
    locked: Any = None
    outputs: dict[str, bytes] = field(default_factory=dict)
    store: Any = None
    seconds: float = 0.0
    repaired: int = 0

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / ".said").open("wb") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=said, stderr=said, start_new_session=True
            )

    def said(self) -> str:
        return (self.folder / ".said").read_text(errors="replace")

    def wipe(self) -> None:
        """As if nothing had ever run here."""
        for name in ("data", "models", "reports", ".vaeline", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def everything(self) -> tuple[Any, dict[str, bytes], Any]:
        """The lock, the bytes of all outputs, and what MLflow shows once all is sent."""
        self.wait_for_uploaders()
        outputs = {name: content for stage in STAGES for name, content in self.workspace.outputs(stage).items()}
        return yaml.safe_load((self.folder / "dvc.lock").read_text()), outputs, self.workspace.tracked()

    def wait_for_uploaders(self) -> None:
        wait_until(lambda: not self.processes(self.folder / ".vaeline" / "outbox"), 120)

    def processes(self, *folders: Path) -> list[psutil.Process]:
        """Living processes that work in one of these folders."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) in folders:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def orphans(self) -> list[psutil.Process]:
        return self.processes(self.folder)

    def repair(self) -> None:
        """What DVC writes in place may be torn; the message says what to do, and that is done here."""
        said = self.said()
        if "join() argument" in said:  # a folder of the run cache left empty: `vaeline doctor` says what to do
            self.repaired += 1
            subprocess.run(
                ["find", str(self.folder / ".dvc/cache/runs"), "-type", "d", "-empty", "-delete"], check=True
            )
            return
        torn = [name for name in ("dvc.lock", ".dvc/tmp/rwlock") if name in said and "is torn" in said]
        if "RWLock-file" in said or "rwlock" in said.lower():
            torn.append(".dvc/tmp/rwlock")
        if not torn and "dvc.lock" in said:
            torn.append("dvc.lock")
        assert torn, f"did not end well:\n{said[-3000:]}"
        self.repaired += 1
        for name in torn:
            (self.folder / name).unlink(missing_ok=True)


def wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("repository") / "clone"
    clone(folder)
    server_folder = tmp_path_factory.mktemp("prefect-server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{server_folder}/prefect.db")
        server = prefect_server(workspace.Workspace(server_folder, server_folder), free_port(0))
        with started(server) as process:
            wait_until_ready(server, process)
            yield first_run(Repository(CrashWorkspace(folder), environment(folder, f"{server.address}/api")))


def environment(folder: Path, api: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"VAELINE_CHECKPOINT_SECONDS": "0.2", "VAELINE_LOG_EVERY": "10", "VAELINE_DEVICE": "cpu"}
    return os.environ | ours | {"PATH": path, "PYTHONPATH": f"src{os.pathsep}{folder}", "PREFECT_API_URL": api}


def clone(folder: Path) -> None:
    """This checkout as a repository of its own, with params for seconds."""
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    params = tiny_params()
    params["data"]["source"]["count"] = 600
    params["train"] |= {"epochs": 40, "batch_size": 16}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / ".git" / "info").mkdir(parents=True)
    for command in ("init -q -b main", "add -A", "commit -q -m Start"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    (folder / ".git" / "info" / "exclude").write_text(".said\n.log\n.points.json\n")


def first_run(repository: Repository) -> Repository:
    """What it comes to without kills."""
    begin = time.monotonic()
    process = repository.start(FLOW)
    assert process.wait(1200) == 0, repository.said()
    repository.seconds = time.monotonic() - begin
    repository.locked, repository.outputs, repository.store = repository.everything()
    assert repository.store["runs"][0]["count"] > 100
    return repository


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def is_dvc(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "dvc" in line and "repro" in line and "pipeline.services.child_processes" not in line


def kill(victims: list[psutil.Process]) -> None:
    for victim in victims:
        try:
            victim.kill()
        except psutil.Error:
            continue


def run_with_kills(repository: Repository, rng: random.Random, how: str) -> int:
    """Run until it ends by itself, killing at random moments before; returns how many kills it took."""
    kills = 0
    while True:
        flow = rng.random() < 0.5
        process = repository.start(FLOW if flow else REPRO)
        delay = rng.uniform(0.0, 0.25 * repository.seconds)
        try:
            code = process.wait(delay)
        except subprocess.TimeoutExpired:
            members = family(process)
            dvc = [member for member in members if is_dvc(member)]
            kill(members if how == "tree" else dvc if dvc and rng.random() < 0.5 else members[:1])
            kills += 1
            process.wait(120)
            print(f"{how}: kill {kills} after {delay:.1f} s of {'vaeline run' if flow else 'dvc repro'}", flush=True)
            wait_until(lambda: not repository.orphans(), SECONDS)
            continue
        if code == 0:
            return kills
        repository.repair()


@pytest.mark.parametrize("how", ["tree", "one"])
def test_killed_at_random_moments_it_comes_to_the_same(repository: Repository, how: str):
    rng = random.Random(f"{SEED} {how}")
    kills, rounds, bad, repository.repaired = 0, 0, [], 0
    print(f"\n{how}: seed {SEED}, {repository.seconds:.0f} s when left alone", flush=True)
    while kills < KILLS:
        repository.wipe()
        kills += run_with_kills(repository, rng, how)
        rounds += 1
        locked, outputs, store = repository.everything()
        same = (locked == repository.locked, outputs == repository.outputs, store == repository.store)
        left = repository.workspace.leftovers()
        print(f"{how}: {kills} kills, round {rounds}, same lock, bytes, store: {same}, left: {left}", flush=True)
        if not all(same) or left:
            print(store_differences(store, repository.store), flush=True)
            bad.append(
                (kills, same, left, store, sorted(k for k in outputs if outputs[k] != repository.outputs.get(k)))
            )
    print(f"{how}: {kills} kills, {rounds} whole runs, {len(bad)} not the same, {repository.repaired} files repaired")
    assert not bad, bad


def store_differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two stores differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line for key in {*one, *other} for line in store_differences(one.get(key), other.get(key), f"{at}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for number, (a, b) in pairs for line in store_differences(a, b, f"{at}/{number}")]
    return [] if one == other else [f"{at}: {str(one)[:200]}, alone {str(other)[:200]}"]
