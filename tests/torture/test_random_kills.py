"""kill -9 at random moments of real runs, on everything or on DVC or the flow alone: run again, all is the same."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from crash_workspaces import OUTPUTS, ROOT, STAGES, CrashWorkspace, PreloadedProcess, tiny_params
from pipeline.services.servers import free_port, prefect_server, started, wait_until_ready
from uploads import until
from vaeline.io import workspace
from workspaces import command_line, execute, tiny_clone

pytestmark = [pytest.mark.torture, pytest.mark.timeout(14400)]
KILLS = int(os.environ.get("TORTURE_KILLS", "50"))
SEED = int(os.environ.get("TORTURE_SEED", str(time.time_ns() % 1_000_000)))
CHILD = "pipeline.services.child_processes"
SECONDS = 60.0  # for orphans to end, on a busy machine
FLOW, REPRO = [sys.executable, "-m", "pipeline.cli", "run"], [sys.executable, "-m", "dvc", "repro"]


class Repository:
    """This checkout as a repository of its own with params for seconds, whose runs are killed."""

    def __init__(self, folder: Path, preloaded: PreloadedProcess, api: str) -> None:
        self.folder, self.workspace, self.repaired = folder, CrashWorkspace(folder, preloaded), 0
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"VAELINE_CHECKPOINT_SECONDS": "0.2", "VAELINE_LOG_EVERY": "10", "VAELINE_DEVICE": "cpu"}
        ours |= {"PATH": path, "PYTHONPATH": f"src{os.pathsep}{folder}", "PREFECT_API_URL": api}
        self.env = os.environ | ours
        params = tiny_params()
        params["data"]["source"]["count"] = 600
        params["train"] |= {"epochs": 40, "batch_size": 16}
        tiny_clone(folder)
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        execute("git", "commit", "-qam", "Params", cwd=folder)
        (folder / ".git" / "info" / "exclude").write_text(".said\n.log\n.points.json\n")
        begin = time.monotonic()
        assert self.start(FLOW).wait(1200) == 0, self.said()
        self.seconds = time.monotonic() - begin
        self.alone = self.everything()  # what it comes to without kills
        assert self.alone[2]["runs"][0]["count"] > 100

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
        until(lambda: not self.at_work(".vaeline/outbox"))
        outputs = {name: content for stage in STAGES for name, content in self.workspace.outputs(stage).items()}
        return yaml.safe_load((self.folder / "dvc.lock").read_text()), outputs, self.workspace.tracked()

    def at_work(self, subfolder: str = "") -> list[psutil.Process]:
        """Living processes that work in the folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == self.folder / subfolder:
                    found.append(process)
        return found

    def repair(self) -> None:
        """What DVC writes in place may be torn; the message says what to do, and that is done here."""
        said, cache = self.said(), str(self.folder / ".dvc/cache/runs")
        self.repaired += 1
        if "join() argument" in said:  # a folder of the run cache left empty: `vaeline doctor` says what to do
            execute("find", cache, "-type", "d", "-empty", "-delete", cwd=self.folder)
            return
        torn = [name for name in ("dvc.lock", ".dvc/tmp/rwlock") if name.rpartition("/")[2] in said.lower()]
        torn += [".dvc/tmp/rwlock"] if "RWLock-file" in said else []
        assert torn, f"did not end well:\n{said[-3000:]}"
        for name in torn:
            (self.folder / name).unlink(missing_ok=True)

    def run_with_kills(self, rng: random.Random, how: str) -> int:
        """Run until it ends by itself, killing at random moments before; returns how many kills it took."""
        kills = 0
        while True:
            process = self.start(rng.choice((FLOW, REPRO)))
            try:
                if process.wait(rng.uniform(0.0, 0.25 * self.seconds)) == 0:
                    return kills
                self.repair()
            except subprocess.TimeoutExpired:
                parent = psutil.Process(process.pid)
                members = [parent, *parent.children(recursive=True)]
                lines = {member: command_line(member) for member in members}
                dvc = [p for p, line in lines.items() if "dvc" in line and "repro" in line and CHILD not in line]
                one = dvc if dvc and rng.random() < 0.5 else members[:1]
                for victim in members if how == "tree" else one:
                    with suppress(psutil.Error):
                        victim.kill()
                kills += 1
                process.wait(120)
                until(lambda: not self.at_work(), SECONDS)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    home, preloaded = tmp_path_factory.mktemp("prefect-server"), PreloadedProcess()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home}/prefect.db")
        server = prefect_server(workspace.Workspace(home, home), free_port(0))
        with started(server) as process:
            wait_until_ready(server, process)
            yield Repository(tmp_path_factory.mktemp("repository"), preloaded, f"{server.address}/api")
    preloaded.close()


@pytest.mark.parametrize("how", ["tree", "one"])
def test_killed_at_random_moments_it_comes_to_the_same(repository: Repository, how: str):
    rng = random.Random(f"{SEED} {how}")
    kills, rounds, bad, repository.repaired = 0, 0, list[Any](), 0
    print(f"\n{how}: seed {SEED}, {repository.seconds:.0f} s when left alone", flush=True)
    while kills < KILLS:
        repository.wipe()
        kills += repository.run_with_kills(rng, how)
        rounds += 1
        found, left = repository.everything(), repository.workspace.leftovers()
        same = [one == other for one, other in zip(found, repository.alone, strict=True)]
        print(f"{how}: {kills} kills, round {rounds}, same lock, bytes, store: {same}, left: {left}", flush=True)
        if not all(same) or left:
            changed = sorted(name for name, content in found[1].items() if content != repository.alone[1].get(name))
            bad.append((kills, same, left, changed, found[2]))
    print(f"{how}: {kills} kills, {rounds} whole runs, {len(bad)} not the same, {repository.repaired} files repaired")
    assert not bad, (bad, repository.alone[2])


def test_the_outputs_here_are_those_of_dvc():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name: {*stage.get("outs", []), *stage.get("metrics", [])} for name, stage in stages.items()} == {
        name: set(paths) for name, paths in OUTPUTS.items()
    }
